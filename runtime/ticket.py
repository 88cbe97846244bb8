"""One clip's request as the engine's worker sees it: frames in, chunks out, and whether it is still wanted."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Protocol

from foresight.media import FrameBatch
from foresight.runtime.config import PipelineConfig
from foresight.runtime.ledger import Ledger

__all__ = ["ClipSource", "Sink", "Ticket"]


class ClipSource(Protocol):
    """A clip's frames, that another thread may stop."""

    warning: str | None

    def batches(self) -> Iterator[FrameBatch]:
        """The frames, once."""

    def stop(self) -> None:
        """End `batches`, from any thread."""

    def close(self) -> None:
        """Let go of what the clip holds."""


class Sink(Protocol):
    """Where reconstructed frames go; called in the worker's threads, one call at a time."""

    def write(self, batch: FrameBatch) -> None:
        """Take the next frames."""

    def finish(self, error: Exception | None) -> None:
        """Take the end, because of `error` if one is given; called once."""


class Ticket:
    """A place in the queue, and later the request at work; `ledger` is there from the first chunk on."""

    def __init__(self, *, config: PipelineConfig, clip: ClipSource, sink: Sink) -> None:
        self.config, self.clip, self.sink = config, clip, sink
        self.ledger: Ledger | None = None
        self.queued = time.perf_counter()
        self._cancelled = threading.Event()

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the rest."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Say that nobody waits for the rest; the worker stops at the end of the chunk it is at."""
        self._cancelled.set()
        self.clip.stop()

    def end(self, error: Exception | None = None) -> None:
        """Tell the sink the end and let go of the clip."""
        self.clip.close()
        self.sink.finish(error)
