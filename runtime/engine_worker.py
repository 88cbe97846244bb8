"""The one thread that owns the models: clips in their order, live chunks in between.

It knows nothing of HTTP. A clip that nobody waits for any more is left at the end of the chunk it is at.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Future
from enum import StrEnum
from typing import Any

from foresight.runtime.background import ReadAhead, WriteBehind
from foresight.runtime.device import is_device_fault
from foresight.runtime.engine_models import ChunkPipeline, EngineModels
from foresight.runtime.ledger import Ledger
from foresight.runtime.metrics import Metrics
from foresight.runtime.refusals import RefusedError
from foresight.runtime.ticket import Ticket

__all__ = ["EngineWorker", "WorkerState"]

_LOG = logging.getLogger(__name__)
_BATCHES_AHEAD, _CHUNKS_BEHIND = 2, 2
_MAX_RETRY_SECONDS = 60


class WorkerState(StrEnum):
    """What the worker is at; only a ready one takes requests."""

    LOADING = "loading"
    READY = "ready"
    FAULTED = "faulted"
    FAILED = "failed"
    STOPPED = "stopped"


class EngineWorker:
    """Loads the models in its thread, then serves tickets and units of live streams.

    Args:
        load: makes the models, warm.
        queue_size: tickets that may wait beside the one at work.
        metrics: where work is counted.
    """

    def __init__(self, load: Callable[[], EngineModels], *, queue_size: int, metrics: Metrics) -> None:
        self._load, self._queue_size, self._metrics = load, queue_size, metrics
        self._work = threading.Condition()
        self._tickets: deque[Ticket] = deque()
        self._units: deque[tuple[Future[Any], Callable[[EngineModels], Any]]] = deque()
        self._running: Ticket | None = None
        self._seconds_a_ticket = 1.0
        self._thread = threading.Thread(target=self._run, name="foresight-engine", daemon=True)
        self.state = WorkerState.LOADING
        self.models: EngineModels | None = None
        self.failure: Exception | None = None
        metrics.watch(running=lambda: int(self._running is not None), waiting=lambda: len(self._tickets))

    def start(self) -> None:
        """Begin to load."""
        self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether nothing is at work and nothing waits."""
        with self._work:
            return self._running is None and not self._tickets and not self._units

    def refuse_full(self) -> None:
        """Raise RefusedError (429) where a ticket would find no place now."""
        with self._work:
            busy = self._running is not None or len(self._tickets) > 0
            if busy and len(self._tickets) >= self._queue_size:
                wait = math.ceil(len(self._tickets) * self._seconds_a_ticket)
                raise RefusedError(
                    429,
                    "queue_full",
                    f"{len(self._tickets)} clips are waiting already; try again later",
                    retry_after=min(max(1, wait), _MAX_RETRY_SECONDS),
                )

    def submit(self, ticket: Ticket) -> None:
        """Queue a ticket; raises RefusedError where the queue is full or the worker is not ready."""
        with self._work:
            self.refuse_unready()
            self.refuse_full()
            self._tickets.append(ticket)
            self._work.notify()

    def refuse_unready(self) -> None:
        """Raise RefusedError (503) unless the worker takes requests."""
        if self.state is not WorkerState.READY:
            raise RefusedError(503, "not_ready", f"the engine is {self.state}", retry_after=5)

    def run_soon(self, unit: Callable[[EngineModels], Any]) -> Future[Any]:
        """Run a unit, a chunk of a live stream, before the next chunk of any clip."""
        future: Future[Any] = Future()
        with self._work:
            self.refuse_unready()
            self._units.append((future, unit))
            self._work.notify()
        return future

    def cancel(self, ticket: Ticket) -> None:
        """Leave a ticket at the end of its chunk; one that still waits gives up its place at once."""
        ticket.cancel()
        with self._work:
            waiting = ticket in self._tickets
            if waiting:
                self._tickets.remove(ticket)
        if waiting:
            ticket.end(RefusedError(499, "cancelled", "the request was cancelled"))

    def stop(self) -> None:
        """End the thread: the ticket at work at its chunk, those that wait with an error."""
        with self._work:
            self.state = WorkerState.STOPPED
            running = self._running
            self._work.notify()
        if running is not None:
            running.cancel()
        self._refuse_all("the server is stopping")
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            models = self._load()
        except Exception as error:  # told by whoever watches the state
            self.failure, self.state = error, WorkerState.FAILED
            return
        with self._work:
            if self.state is WorkerState.LOADING:
                self.models, self.state = models, WorkerState.READY
        while (work := self._next()) is not None:
            if isinstance(work, Ticket):
                self._serve(work, models)
            else:
                self._serve_unit(*work, models)
        models.close()

    def _next(self) -> Ticket | tuple[Future[Any], Callable[[EngineModels], Any]] | None:
        with self._work:
            self._running = None
            self._work.wait_for(lambda: self._units or self._tickets or self.state is not WorkerState.READY)
            if self.state is not WorkerState.READY:
                return None
            if self._units:
                return self._units.popleft()
            self._running = self._tickets.popleft()
            return self._running

    def _serve(self, ticket: Ticket, models: EngineModels) -> None:
        begun = time.perf_counter()
        error: Exception | None = None
        try:
            self._reconstruct(ticket, models)
        except Exception as failure:
            error = self._judged(failure)
            if ticket.cancelled:
                error = RefusedError(499, "cancelled", "the request was cancelled")
        self._seconds_a_ticket += 0.3 * (time.perf_counter() - begun - self._seconds_a_ticket)
        with self._work:
            self._running = None
        ticket.end(error)

    def _reconstruct(self, ticket: Ticket, models: EngineModels) -> None:
        pipeline = models.pipeline(ticket.config)
        progress = _Progress(pipeline, ticket, self._metrics)
        with (
            WriteBehind(ticket.sink.write, _CHUNKS_BEHIND) as writer,
            ReadAhead(ticket.clip.batches(), _BATCHES_AHEAD) as batches,
        ):
            for chunk in pipeline.stream(batches):
                progress.count(len(chunk.batch), float(chunk.batch.timestamps[-1]))
                writer.put(chunk.batch)
                self._serve_units(models)
                if ticket.cancelled:
                    raise RefusedError(499, "cancelled", "the request was cancelled")
        progress.finish()

    def _judged(self, error: Exception) -> Exception:
        # Whoever waits for the work logs what is not the client's own: only there is the request's id known.
        if not is_device_fault(error):
            return error
        _LOG.error("device fault, no more requests are taken", exc_info=error)
        self._fault()
        return RefusedError(503, "device_fault", "the device has failed")

    def _serve_units(self, models: EngineModels) -> None:
        with self._work:
            units = list(self._units)
            self._units.clear()
        for future, unit in units:
            self._serve_unit(future, unit, models)

    def _serve_unit(
        self, future: Future[Any], unit: Callable[[EngineModels], Any], models: EngineModels
    ) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(unit(models))
        except Exception as error:  # raised again where the unit is waited for
            future.set_exception(self._judged(error))

    def _fault(self) -> None:
        self.state = WorkerState.FAULTED
        self._refuse_all("the device has failed")

    def _refuse_all(self, why: str) -> None:
        with self._work:
            tickets, units = list(self._tickets), list(self._units)
            self._tickets.clear()
            self._units.clear()
        refusals: Collection[Ticket] = tickets
        for ticket in refusals:
            ticket.end(RefusedError(503, "not_ready", why, retry_after=5))
        for future, _ in units:
            if future.set_running_or_notify_cancel():
                future.set_exception(RefusedError(503, "not_ready", why, retry_after=5))


class _Progress:
    """Keeps a ticket's ledger and the metrics up to date, chunk by chunk, without waiting for the device."""

    def __init__(self, pipeline: ChunkPipeline, ticket: Ticket, metrics: Metrics) -> None:
        self._pipeline, self._ticket, self._metrics = pipeline, ticket, metrics
        self._begun = self._last = time.perf_counter()
        self._chunks = self._frames = 0
        self._video_seconds = 0.0

    def count(self, frames: int, seconds: float) -> None:
        now = time.perf_counter()
        if not self._chunks:
            self._metrics.time_to_first_frame.observe(now - self._ticket.queued)
        else:
            self._metrics.inter_frame.observe((now - self._last) / frames)
        self._last, self._video_seconds = now, seconds
        self._chunks, self._frames = self._chunks + 1, self._frames + frames
        before, self._ticket.ledger = self._ticket.ledger, self._ledger(wait=False)
        self._metrics.add_stages(self._ticket.ledger - before if before else self._ticket.ledger)

    def finish(self) -> None:
        self._ticket.ledger = self._ledger(wait=True)
        if self._video_seconds:
            self._metrics.realtime_factor.observe(self._video_seconds / (self._last - self._begun))

    def _ledger(self, *, wait: bool) -> Ledger:
        timings = self._pipeline.clock.timings(wait=wait)
        return Ledger.of(timings, chunks=self._chunks, frames=self._frames)
