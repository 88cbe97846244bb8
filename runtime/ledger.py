"""What a request cost, stage by stage, and what the adapter's way adds to a pipeline that has only the VLM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from foresight.runtime.timing import StageTiming

__all__ = ["LEDGER_STAGES", "OVERHEAD_LIMIT_PERCENT", "Ledger"]

LEDGER_STAGES = ("vlm", "dino", "adapter", "denoise", "vae")
OVERHEAD_LIMIT_PERCENT = 25.0
_ADDED = ("dino", "adapter")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Milliseconds of every stage of `LEDGER_STAGES`, summed over `chunks` chunks that gave `frames` frames."""

    milliseconds: Mapping[str, float]
    chunks: int
    frames: int

    @classmethod
    def of(cls, timings: Mapping[str, StageTiming], *, chunks: int, frames: int) -> Ledger:
        """The ledger of a clock's timings; a stage that did not run (denoise in latent mode) took 0 ms."""
        spent = {name: timings[name].total_ms if name in timings else 0.0 for name in LEDGER_STAGES}
        return cls(milliseconds=spent, chunks=chunks, frames=frames)

    def __add__(self, other: Ledger) -> Ledger:
        summed = {name: self.milliseconds[name] + other.milliseconds[name] for name in LEDGER_STAGES}
        return Ledger(
            milliseconds=summed, chunks=self.chunks + other.chunks, frames=self.frames + other.frames
        )

    def __sub__(self, other: Ledger) -> Ledger:
        left = {name: self.milliseconds[name] - other.milliseconds[name] for name in LEDGER_STAGES}
        return Ledger(milliseconds=left, chunks=self.chunks - other.chunks, frames=self.frames - other.frames)

    @property
    def overhead_percent(self) -> float:
        """DINO and adapter as a percentage of all other stages, which the VLM-only pipeline has too."""
        added = sum(self.milliseconds[name] for name in _ADDED)
        rest = sum(self.milliseconds.values()) - added
        return 100 * added / rest if rest else 0.0

    def headers(self) -> dict[str, str]:
        """The ledger as HTTP headers, in milliseconds and percent."""
        spent = {f"X-Foresight-{name.title()}-Ms": f"{ms:.3f}" for name, ms in self.milliseconds.items()}
        return spent | {
            "X-Foresight-Overhead-Percent": f"{self.overhead_percent:.2f}",
            "X-Foresight-Overhead-Limit-Percent": f"{OVERHEAD_LIMIT_PERCENT:g}",
            "X-Foresight-Chunks": str(self.chunks),
            "X-Foresight-Frames": str(self.frames),
        }

    def to_dict(self) -> dict[str, Any]:
        """The ledger for JSON: milliseconds of the stages, and the rest as in the headers."""
        return {
            "stages_ms": {name: round(ms, 3) for name, ms in self.milliseconds.items()},
            "overhead_percent": round(self.overhead_percent, 2),
            "overhead_limit_percent": OVERHEAD_LIMIT_PERCENT,
            "chunks": self.chunks,
            "frames": self.frames,
        }
