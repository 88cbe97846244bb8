"""What the server counts and times, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from foresight.runtime.ledger import Ledger

__all__ = ["Metrics"]

_STAGE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_FRAME_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28)
_WAIT_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_FACTORS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)


class Metrics:
    """The metrics of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "foresight_requests", "Finished requests for video, by HTTP status", ["status"], registry=registry
        )
        self.rejected = Counter(
            "foresight_rejected", "Requests turned away, by reason", ["reason"], registry=registry
        )
        self.time_to_first_frame = Histogram(
            "foresight_time_to_first_frame_seconds",
            "From a clip's place in the queue to its first reconstructed frames",
            buckets=_WAIT_SECONDS,
            registry=registry,
        )
        self.inter_frame = Histogram(
            "foresight_inter_frame_seconds",
            "Time a frame, from one chunk of a request to the next",
            buckets=_FRAME_SECONDS,
            registry=registry,
        )
        self._stages = Histogram(
            "foresight_stage_seconds",
            "Time of a stage of a chunk",
            ["stage"],
            buckets=_STAGE_SECONDS,
            registry=registry,
        )
        self.realtime_factor = Histogram(
            "foresight_video_realtime_factor",
            "Seconds of video that a second of work gave",
            buckets=_FACTORS,
            registry=registry,
        )
        self._running = Gauge("foresight_requests_running", "Requests at work", registry=registry)
        self._waiting = Gauge("foresight_requests_waiting", "Requests that wait", registry=registry)

    def watch(self, *, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        """Ask these functions for the gauges."""
        self._running.set_function(running)
        self._waiting.set_function(waiting)

    def add_stages(self, ledger: Ledger) -> None:
        """Count the stages of one chunk."""
        for name, milliseconds in ledger.milliseconds.items():
            if milliseconds:
                self._stages.labels(name).observe(milliseconds / 1e3)

    def text(self) -> bytes:
        """All of it, as `/metrics` answers."""
        return generate_latest(self.registry)
