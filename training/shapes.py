"""Solid shapes that translate and rotate over a clip, drawn from signed distances with anti-aliasing."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from foresight.training.textures import colours, pixel_grid, uniform

__all__ = ["MAX_SHAPES", "Shapes", "draw_shapes"]

MAX_SHAPES = 3
CORNERS = (0, 3, 4, 5, 6, -5, -4)  # 0 is a circle, n a regular polygon, -n a star of n points


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """What was painted: visible masks bool [B, S, T, H, W], colours float32 [B, S, 3] in [0, 1], present bool [B, S].

    A shape that is not present has an empty mask; S is `MAX_SHAPES`, painted in order, the last on top.
    """

    masks: Tensor
    colours: Tensor
    present: Tensor


def draw_shapes(frames: Tensor, counts: Tensor, generator: torch.Generator) -> tuple[Tensor, Shapes]:
    """Paint `counts` [B] shapes over `frames` [B, T, 3, H, W] in [0, 1] and return the frames and what was painted."""
    batch, num_frames, _, height, width = frames.shape
    device = generator.device
    row, column = pixel_grid((height, width), device)
    time = torch.arange(num_frames, device=device, dtype=torch.float32)[:, None, None] - num_frames // 2
    colour = colours((batch, MAX_SHAPES), generator)
    present = torch.arange(MAX_SHAPES, device=device) < counts[:, None]
    masks: list[Tensor] = []
    for shape in range(MAX_SHAPES):
        parameter = (batch, 1, 1, 1)
        radius = uniform(parameter, 0.1, 0.26, generator) * height
        y = (
            row
            - uniform(parameter, 0.2, 0.8, generator) * height
            - uniform(parameter, -3, 3, generator) * time
        )
        x = column - uniform(parameter, 0.15, 0.85, generator) * width
        x = x - uniform(parameter, -4, 4, generator) * time
        turn = (
            uniform(parameter, 0, 2 * math.pi, generator) + uniform(parameter, -0.12, 0.12, generator) * time
        )
        kind = torch.randint(len(CORNERS), (batch,), generator=generator, device=device)
        distance = signed_distance(x, y, turn, radius, kind)
        alpha = (0.5 - distance).clamp(0, 1) * present[:, shape, None, None, None]
        frames = torch.lerp(frames, colour[:, shape, None, :, None, None], alpha[:, :, None])
        covered = alpha > 0.5
        masks = [mask & ~covered for mask in masks] + [covered]
    return frames, Shapes(masks=torch.stack(masks, 1), colours=colour, present=present)


def signed_distance(x: Tensor, y: Tensor, turn: Tensor, radius: Tensor, kind: Tensor) -> Tensor:
    """Distance in pixels to the edge of each shape, negative inside; all arguments broadcast to [B, T, H, W]."""
    length = torch.hypot(x, y)
    angle = torch.atan2(y, x) + turn
    corners = torch.tensor(CORNERS, device=x.device, dtype=torch.float32)[kind][:, None, None, None]
    sector = 2 * math.pi / corners.abs().clamp(min=1)
    folded = torch.remainder(angle, sector) - sector / 2
    polygon = length * folded.cos() - radius * (sector / 2).cos()
    # A star's edge runs straight from its tip to a notch at 0.45 of the radius, in polar form.
    notch = radius * 0.45
    inner_x, inner_y = notch, torch.zeros_like(notch)
    tip_x, tip_y = radius * (sector / 2).cos(), radius * (sector / 2).sin()
    edge_x, edge_y = tip_x - inner_x, tip_y - inner_y
    px, py = length * folded.cos() - inner_x, length * folded.abs().sin() - inner_y
    star = (px * edge_y - py * edge_x) / torch.hypot(edge_x, edge_y)
    return torch.where(corners == 0, length - radius, torch.where(corners > 0, polygon, star))
