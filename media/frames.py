"""Frames in memory with their time stamps."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrameBatch:
    """Consecutive frames of one clip, upright and in RGB.

    Args:
        frames: uint8 [T, H, W, 3], T >= 1, full range 0..255, non-linear (gamma-coded) RGB.
        timestamps: float64 [T], seconds from the first frame of the clip, strictly increasing.
        fps: average frame rate of the clip in frames per second; the time stamps say when a frame is shown.

    Raises:
        ValueError: an array has another dtype or shape, the time stamps do not increase, or fps is not
            positive.
    """

    frames: NDArray[np.uint8]
    timestamps: NDArray[np.float64]
    fps: Fraction

    def __post_init__(self) -> None:
        _check_frames(self.frames)
        _check_timestamps(self.timestamps, len(self.frames))
        if not isinstance(self.fps, Fraction) or self.fps <= 0:
            raise ValueError(f"fps must be a positive Fraction, not {self.fps!r}")

    def __len__(self) -> int:
        """Number of frames T."""
        return len(self.frames)

    @property
    def height(self) -> int:
        """Height of a frame in pixels."""
        return int(self.frames.shape[1])

    @property
    def width(self) -> int:
        """Width of a frame in pixels."""
        return int(self.frames.shape[2])


def _check_frames(frames: NDArray[np.uint8]) -> None:
    if not isinstance(frames, np.ndarray):
        raise ValueError(f"frames must be a numpy array, not {type(frames).__name__}")
    if frames.dtype != np.uint8:
        raise ValueError(f"frames must be uint8 in 0..255, not {frames.dtype}")
    if frames.ndim != 4 or frames.shape[3] != 3:
        raise ValueError(f"frames must have the shape [T, H, W, 3], not {list(frames.shape)}")
    if 0 in frames.shape:
        raise ValueError(
            f"frames must hold at least one frame of one pixel, not the shape {list(frames.shape)}"
        )


def _check_timestamps(timestamps: NDArray[np.float64], count: int) -> None:
    if not isinstance(timestamps, np.ndarray):
        raise ValueError(f"timestamps must be a numpy array, not {type(timestamps).__name__}")
    if timestamps.dtype != np.float64:
        raise ValueError(f"timestamps must be float64 seconds, not {timestamps.dtype}")
    if timestamps.shape != (count,):
        raise ValueError(
            f"timestamps must have the shape [{count}], one a frame, not {list(timestamps.shape)}"
        )
    if not np.isfinite(timestamps).all():
        raise ValueError("timestamps must be finite seconds")
    steps = np.diff(timestamps)
    if (steps <= 0).any():
        at = int(np.argmax(steps <= 0))
        raise ValueError(
            f"timestamps must increase, but {timestamps[at + 1]} follows {timestamps[at]} at frame {at + 1}"
        )
