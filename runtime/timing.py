"""How long each stage of a reconstruction takes, and how much memory the process has needed."""

from __future__ import annotations

import resource
import sys
import threading
import time
from array import array
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["STAGES", "StageClock", "StageTiming", "peak_gpu_memory_mb", "peak_memory_mb"]

STAGES = ("read", "preprocess", "vlm", "dino", "adapter", "denoise", "vae", "postprocess", "write")
"""Every stage in its order; "read" and "write" run in threads of their own beside the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTiming:
    """What one stage took in milliseconds: all calls, their median, the first; and how many calls."""

    total_ms: float
    median_ms: float
    first_ms: float
    calls: int


class StageClock:
    """Times stages: wall clock on a CPU, CUDA events on a GPU, so that measuring waits for nothing."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._on_cuda = str(device).startswith("cuda")
        self._milliseconds: dict[str, array[float]] = {}
        self._running: deque[tuple[str, Any, Any]] = deque()
        self._lock = threading.Lock()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block that runs on the models' device."""
        if not self._on_cuda:
            with self.host_stage(name):
                yield
            return
        import torch

        # torch leaves its events untyped.
        new_event: Any = torch.cuda.Event
        start, end = new_event(enable_timing=True), new_event(enable_timing=True)
        start.record()
        yield
        end.record()
        self._running.append((name, start, end))

    @contextmanager
    def host_stage(self, name: str) -> Iterator[None]:
        """Time a block that runs on the CPU, in any thread."""
        start = time.perf_counter()
        yield
        self.add(name, (time.perf_counter() - start) * 1e3)

    def add(self, name: str, milliseconds: float) -> None:
        """Record one call of a stage that was timed elsewhere."""
        with self._lock:
            self._milliseconds.setdefault(name, array("d")).append(milliseconds)

    def settle(self) -> None:
        """Read the events of stages that the device has finished, without waiting for any."""
        while self._running and self._running[0][2].query():
            name, start, end = self._running.popleft()
            self.add(name, start.elapsed_time(end))

    def timings(self, *, wait: bool = True) -> dict[str, StageTiming]:
        """What every stage has taken so far, in the order of `STAGES`.

        Waits for the device, unless `wait` is off; stages that it has not finished are then left out.
        """
        if wait and self._running:
            self._running[-1][2].synchronize()
        self.settle()
        with self._lock:
            recorded = {name: list(values) for name, values in self._milliseconds.items()}
        order = [name for name in STAGES if name in recorded]
        order += [name for name in recorded if name not in STAGES]
        return {
            name: StageTiming(
                total_ms=sum(recorded[name]),
                median_ms=median(recorded[name]),
                first_ms=recorded[name][0],
                calls=len(recorded[name]),
            )
            for name in order
        }


def peak_memory_mb() -> float:
    """The largest resident size that this process has had, in MB (10^6 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes (getrusage(2) of each).
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def peak_gpu_memory_mb(device: torch.device) -> float | None:
    """The most memory that torch has had on a CUDA device, in MB (10^6 bytes); None for other devices."""
    import torch

    return torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None
