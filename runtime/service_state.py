"""What the routes share: the worker, the decoder, the limits, the metrics, and whether the server is draining."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from foresight.media import UNTRUSTED, ClipLimits
from foresight.runtime.decoding import ClipDecoder
from foresight.runtime.engine_models import EngineModels
from foresight.runtime.engine_worker import EngineWorker
from foresight.runtime.metrics import Metrics
from foresight.runtime.refusals import RefusedError

__all__ = ["RequestCeilings", "ServiceState"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestCeilings:
    """The most that requests may ask for; seconds are of a live stream, uploads and sessions are at a time."""

    clip: ClipLimits = UNTRUSTED
    queue: int = 8
    uploads: int = 16
    sessions: int = 2
    max_steps: int = 16
    session_seconds: float = 600.0
    idle_seconds: float = 30.0


@dataclass(slots=True, kw_only=True)
class ServiceState:
    """One server at work."""

    worker: EngineWorker
    decoder: ClipDecoder
    metrics: Metrics
    limits: RequestCeilings
    draining: bool = False
    uploads: int = field(default=0, init=False)
    sessions: int = field(default=0, init=False)
    requests: int = field(default=0, init=False)

    def refuse_unready(self) -> None:
        """Raise RefusedError (503) while warming up, draining, or after a device fault."""
        if self.draining:
            raise RefusedError(503, "draining", "the server is shutting down; ask another one", retry_after=5)
        self.worker.refuse_unready()

    def ready_models(self) -> EngineModels:
        """The models; raises RefusedError (503) before they are there."""
        self.refuse_unready()
        models = self.worker.models
        assert models is not None
        return models

    @property
    def idle(self) -> bool:
        """Whether no request is being answered."""
        return not self.requests and self.worker.idle

    @contextmanager
    def upload_place(self) -> Iterator[None]:
        """Hold one of the places for clips on their way in; raises RefusedError (429) where none is free."""
        if self.uploads >= self.limits.uploads:
            raise RefusedError(429, "uploads_full", "too many clips are being sent; try again", retry_after=2)
        self.uploads += 1
        try:
            yield
        finally:
            self.uploads -= 1

    @contextmanager
    def session_place(self) -> Iterator[None]:
        """Hold one of the places for live streams; raises RefusedError (429) where none is free."""
        if self.sessions >= self.limits.sessions:
            raise RefusedError(
                429, "sessions_full", "too many live streams are open; try later", retry_after=10
            )
        self.sessions += 1
        try:
            yield
        finally:
            self.sessions -= 1

    def count_refused(self, refusal: RefusedError) -> None:
        """Count a request that was turned down, or has failed."""
        self.metrics.requests.labels(str(refusal.status)).inc()
        if refusal.code not in ("client_left", "internal"):
            self.metrics.rejected.labels(refusal.code).inc()
