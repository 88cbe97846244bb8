"""What a reconstruction must beat: three answers that need no model, or the wrong clip."""

from __future__ import annotations

from torch import Tensor

__all__ = ["mean_colour", "other_clip", "static_frame"]


def mean_colour(video: Tensor) -> Tensor:
    """Every clip as its own mean colour, the one colour of least squared error; [B, 3, T, H, W] in and out.

    Raises ValueError for other shapes.
    """
    _check(video)
    return video.mean((2, 3, 4), keepdim=True).expand_as(video)


def static_frame(video: Tensor) -> Tensor:
    """Every clip as its mean over time, the still image of least squared error; [B, 3, T, H, W] in and out.

    Raises ValueError for other shapes.
    """
    _check(video)
    return video.mean(2, keepdim=True).expand_as(video)


def other_clip(reconstruction: Tensor) -> Tensor:
    """Every clip answered with another one's reconstruction, its predecessor's; [B, 3, T, H, W] in and out.

    Raises ValueError for other shapes and for fewer than two clips.
    """
    _check(reconstruction)
    if reconstruction.shape[0] < 2:
        raise ValueError("one clip has no other clip: give a batch of at least two")
    return reconstruction.roll(1, 0)


def _check(video: Tensor) -> None:
    if video.ndim != 5 or video.shape[1] != 3:
        raise ValueError(f"video has shape {tuple(video.shape)}: must be [B, 3, T, H, W]")
