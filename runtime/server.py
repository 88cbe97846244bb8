"""uvicorn's server with another end: SIGTERM drains, and an engine that cannot be loaded stops it."""

from __future__ import annotations

import logging
import signal
import time
from types import FrameType

import uvicorn

from foresight.runtime.engine_worker import WorkerState
from foresight.runtime.service_state import ServiceState

__all__ = ["DrainingServer"]

_LOG = logging.getLogger(__name__)
# A client that has waited for the queue may be between two requests; its answer must be on the wire.
_QUIET_SECONDS = 0.2


class DrainingServer(uvicorn.Server):
    """Serves until a signal; then `/ready` is 503, requests at work are finished, and `run` returns.

    A second signal, or `drain_seconds`, ends what is still at work.
    """

    def __init__(self, config: uvicorn.Config, state: ServiceState, *, drain_seconds: float) -> None:
        super().__init__(config)
        self._state, self._drain_seconds = state, drain_seconds
        self._drain_begun: float | None = None
        self._idle_since: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Begin to drain. The signal is not raised again at the end, so that the exit code is 0."""
        if self._drain_begun is not None:
            self.should_exit = self.force_exit = True
            return
        self._drain_begun = time.monotonic()
        self._state.draining = True
        _LOG.info("%s: draining, at most %g s", signal.Signals(sig).name, self._drain_seconds)

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop; asked ten times a second."""
        if self._state.worker.state is WorkerState.FAILED:
            return True
        if self._drain_begun is not None:
            now = time.monotonic()
            idle = self._state.idle
            self._idle_since = (self._idle_since or now) if idle else None
            if now - self._drain_begun > self._drain_seconds:
                _LOG.warning("%g s of draining are over, ending what is still at work", self._drain_seconds)
                self.force_exit = True
                return True
            if self._idle_since is not None and now - self._idle_since >= _QUIET_SECONDS:
                return True
        return await super().on_tick(counter)
