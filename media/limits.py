"""How much of a clip is accepted before and while it is decoded."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipLimits:
    """Upper bounds on a clip; None means unlimited.

    Args:
        max_bytes: size of the file.
        max_pixels: width x height of a frame.
        max_frames: number of frames, in the header and as decoded.
        max_seconds: duration, in the header and as decoded.
        max_decode_seconds: time spent inside the decoder, not in the code that uses the frames.
        max_video_streams: number of moving pictures in the file (cover images are not counted).

    Raises:
        ValueError: a bound is not positive.
    """

    max_bytes: int | None = None
    max_pixels: int | None = None
    max_frames: int | None = None
    max_seconds: float | None = None
    max_decode_seconds: float | None = None
    max_video_streams: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not value > 0:
                raise ValueError(f"{field.name} must be positive, or None for no limit, not {value!r}")


UNTRUSTED = ClipLimits(
    max_bytes=64 * 2**20,
    max_pixels=1920 * 1088,
    max_frames=257,
    max_seconds=30.0,
    max_decode_seconds=10.0,
    max_video_streams=1,
)
"""For clips that somebody else sends."""

LOCAL = ClipLimits(max_pixels=4096 * 2304)
"""For a user's own file on the command line."""
