"""What the server's tests start and let go of; they are skipped where the server's own libraries are missing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from foresight.runtime.access import AccessRules
from foresight.runtime.request_limits import SizeLimits

if TYPE_CHECKING:
    from .running_server import RunningServer, SlowModels


def pytest_collect_file() -> None:
    """Skip the folder; in the body of this file it would end a run that names the folder."""
    for name in ("fastapi", "pydantic", "uvicorn", "prometheus_client"):
        pytest.importorskip(name)


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("foresight", "uvicorn")]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers, logger.level, logger.propagate = handlers, level, propagate


@pytest.fixture
def slow_models() -> SlowModels:
    from .running_server import SlowModels

    return SlowModels()


@pytest.fixture
def serve(slow_models: SlowModels) -> Iterator[Callable[..., RunningServer]]:
    """Return a function that starts a server; `ready` off leaves it loading until `load` is set."""
    from .running_server import RunningServer

    running: list[RunningServer] = []

    def start(
        models: Any = None,
        *,
        rules: AccessRules | None = None,
        sizes: SizeLimits | None = None,
        ready: bool = True,
        **limits: Any,
    ) -> RunningServer:
        server = RunningServer(models or slow_models, rules or AccessRules(), sizes, **limits)
        if not ready:
            server.load.clear()
        server.start()
        running.append(server)
        if ready:
            server.wait_until_ready()
        return server

    yield start
    for server in running:
        server.stop()
