"""Where the object ended up: the mask and the box of a solid shape, read back from its reconstruction.

The input's exact mask, and with it the shape's colour, are known (procedural clips). Every pixel of a
reconstruction near the shape is asked which of two stories it tells better: "here is the shape" (its colour),
or "here is what the input shows behind it" (the input's own pixel; under the shape, the mean of what
surrounds it). The pixels of the first story are the reconstruction's mask. A perfect reconstruction gives the
exact mask back, a blurred one a mask whose edge runs where shape and background mix half and half, a shape in
the wrong place is found in that place, and another clip's frames rarely come near the shape's colour at all.
It cannot tell a shape from a background of its own colour, and it says nothing about textured objects.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["box_iou", "mask_iou", "masks_to_boxes", "segment_by_colour"]

_NEAR = 3  # pixels


def mask_iou(prediction: Tensor, target: Tensor) -> Tensor:
    """Intersection over union of bool masks [..., H, W], float32 [...]; two empty masks agree fully (1).

    Raises ValueError for differing shapes or masks that are not bool.
    """
    _check_mask("prediction", prediction)
    _check_mask("target", target)
    if prediction.shape != target.shape:
        raise ValueError(f"masks {tuple(prediction.shape)} and {tuple(target.shape)} differ in shape")
    intersection = (prediction & target).sum((-2, -1)).float()
    union = (prediction | target).sum((-2, -1)).float()
    return torch.where(union > 0, intersection / union.clamp(min=1), 1.0)


def box_iou(prediction: Tensor, target: Tensor) -> Tensor:
    """Intersection over union of boxes [..., 4], pair by pair, float32 [...]; two empty ones agree fully (1).

    Boxes are x0, y0, x1, y1 in pixels, half-open. Raises ValueError for differing shapes.
    """
    if prediction.shape != target.shape or prediction.shape[-1] != 4:
        raise ValueError(
            f"boxes {tuple(prediction.shape)} and {tuple(target.shape)}: must be [..., 4] of one shape"
        )
    first, second = prediction.float(), target.float()
    corner = torch.maximum(first[..., :2], second[..., :2])
    opposite = torch.minimum(first[..., 2:], second[..., 2:])
    intersection = (opposite - corner).clamp(min=0).prod(-1)
    union = _area(first) + _area(second) - intersection
    return torch.where(union > 0, intersection / union.where(union > 0, 1.0), 1.0)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def masks_to_boxes(mask: Tensor) -> Tensor:
    """The smallest box around every bool mask [..., H, W]: int64 x0, y0, x1, y1 [..., 4], pixels, half-open.

    An empty mask gives 0, 0, 0, 0. Raises ValueError for masks that are not bool.
    """
    _check_mask("mask", mask)
    x0, x1 = _extent(mask.any(-2))
    y0, y1 = _extent(mask.any(-1))
    return torch.stack((x0, y0, x1, y1), -1)


def _extent(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """First and one past the last True along the last axis; 0 and 0 where there is none."""
    length = occupied.shape[-1]
    index = torch.arange(length, device=occupied.device)
    first = index.where(occupied, length).amin(-1)
    last = (index + 1).where(occupied, 0).amax(-1)
    return first.where(last > 0, 0), last


def segment_by_colour(
    video: Tensor,
    mask: Tensor,
    *,
    target: Tensor,
    colour: Tensor | None = None,
    radius: int | None = None,
    tolerance: float = 0.5,
) -> Tensor:
    """The mask of a solid shape in a reconstruction, bool [B, T, H, W]; the method heads this module.

    `video` is the reconstruction and `target` the input, float [B, 3, T, H, W] in [-1, 1]; `mask` is the
    shape's exact visible mask, bool [B, T, H, W]; `colour` its colour, float [B, 3] in [-1, 1], by default
    the input's mean inside the mask. Only pixels within `radius` (default: an eighth of the shorter side) of
    the exact mask are asked, and only colours within `tolerance` (RGB distance, black to white is 3.46) or
    half the contrast of the shape's may be the shape; specks thinner than three pixels that touch nothing
    thicker are dropped. Frames without the shape stay empty. Raises ValueError for shapes that do not fit
    together.
    """
    _check_segmentation(video, mask, target, colour, radius)
    radius = max(1, min(mask.shape[-2:]) // 8) if radius is None else radius
    video, target = video.float().clamp(-1, 1), target.float().clamp(-1, 1)
    colour = _colour_inside(target, mask) if colour is None else colour.float()
    background = _background(target, _dilate(mask, 1), radius)
    to_shape = (video - colour[:, :, None, None, None]).square().sum(1)
    to_background = (video - background).square().sum(1)
    # Off the line between the two colours, nearest could still be far from both: a third colour is no shape.
    half_way = (background - colour[:, :, None, None, None]).square().sum(1) / 4
    near = to_shape < half_way.clamp(min=tolerance**2)
    found = (to_shape < to_background) & near & _dilate(mask, radius)
    return _without_specks(found, steps=radius)


def _colour_inside(video: Tensor, mask: Tensor) -> Tensor:
    """Mean colour [B, 3] inside the mask, away from its anti-aliased edge where the shape is thick enough."""
    core = _erode(mask)
    weight = torch.where(core.flatten(1).any(1)[:, None, None, None], core, mask).to(video.dtype)[:, None]
    return (video * weight).sum((2, 3, 4)) / weight.sum((2, 3, 4)).clamp(min=1)


def _background(video: Tensor, covered: Tensor, radius: int) -> Tensor:
    """The input, what is covered replaced by the mean of its uncovered surroundings."""
    weight = (~covered).to(video.dtype)[:, None]
    visible = video * weight
    filled = visible.mean((-2, -1), keepdim=True) / weight.mean((-2, -1), keepdim=True).clamp(min=1e-6)
    # The nearer the better, above all at the edge, where a wrong background moves the half-way colour.
    for reach in sorted({radius, min(radius, _NEAR)}, reverse=True):
        share = _box_mean(weight, reach)
        filled = torch.where(share > 1e-3, _box_mean(visible, reach) / share.clamp(min=1e-3), filled)
    return torch.where(covered[:, None], filled, video)


def _box_mean(video: Tensor, radius: int) -> Tensor:
    """Mean over a square of side 2 radius + 1, zeros beyond the frame; separable, because that is quicker."""
    frames = video.flatten(0, 2)[:, None]
    side = 2 * radius + 1
    frames = F.avg_pool2d(frames, (side, 1), 1, (radius, 0))
    frames = F.avg_pool2d(frames, (1, side), 1, (0, radius))
    return frames.view_as(video)


def _dilate(mask: Tensor, radius: int) -> Tensor:
    frames = mask.flatten(0, 1)[:, None].float()
    side = 2 * radius + 1
    frames = F.max_pool2d(frames, (side, 1), 1, (radius, 0))
    frames = F.max_pool2d(frames, (1, side), 1, (0, radius))
    return frames.view_as(mask) > 0


def _erode(mask: Tensor) -> Tensor:
    return ~_dilate(~mask, 1)


def _without_specks(mask: Tensor, *, steps: int) -> Tensor:
    """Opening by reconstruction: parts without a 3x3 square go, tips that hang on a thicker part stay."""
    kept = _erode(mask)
    for _ in range(steps):
        kept = _dilate(kept, 1) & mask
    # A shape of one or two pixels is all speck; better counted than lost.
    return torch.where(kept.flatten(2).any(2)[..., None, None], kept, mask)


def _check_mask(name: str, mask: Tensor) -> None:
    if mask.dtype != torch.bool or mask.ndim < 2:
        raise ValueError(f"{name} is {mask.dtype} {tuple(mask.shape)}: must be bool [..., H, W]")


def _check_segmentation(
    video: Tensor, mask: Tensor, target: Tensor, colour: Tensor | None, radius: int | None
) -> None:
    _check_mask("mask", mask)
    if video.ndim != 5 or video.shape != target.shape or video.shape[1] != 3:
        raise ValueError(
            f"video {tuple(video.shape)}, target {tuple(target.shape)}: must be [B, 3, T, H, W] of one shape"
        )
    if mask.shape != (video.shape[0], *video.shape[2:]):
        raise ValueError(
            f"mask {tuple(mask.shape)} does not fit video {tuple(video.shape)}: must be [B, T, H, W]"
        )
    if colour is not None and colour.shape != (video.shape[0], 3):
        raise ValueError(f"colour has shape {tuple(colour.shape)}: must be [B, 3]")
    if radius is not None and radius < 1:
        raise ValueError(f"radius {radius}: must be at least 1 pixel")
