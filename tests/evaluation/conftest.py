"""Clips of a solid disc on a textured background, with its exact mask and colour."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

DiscClips = tuple[Tensor, Tensor, Tensor]


@pytest.fixture
def disc_clips() -> Callable[..., DiscClips]:
    """Makes video, masks and colours of drifting discs."""
    return _disc_clips


@pytest.fixture
def target(disc_clips: Callable[..., DiscClips]) -> Tensor:
    """Two clips of a disc, [2, 3, 3, 96, 128]."""
    return disc_clips()[0]


@pytest.fixture
def mask(disc_clips: Callable[..., DiscClips]) -> Tensor:
    """The exact masks of `target`, bool [2, 3, 96, 128]."""
    return disc_clips()[1]


@pytest.fixture
def colour(disc_clips: Callable[..., DiscClips]) -> Tensor:
    """The discs' colours, [2, 3]."""
    return disc_clips()[2]


def _disc_clips(*, batch: int = 2, frames: int = 3, shift: float = 0.0, seed: int = 0) -> DiscClips:
    """Video [B, 3, T, 96, 128] in [-1, 1], mask bool [B, T, 96, 128] and colour [B, 3] of a drifting disc."""
    generator = torch.Generator().manual_seed(seed)
    height, width = 96, 128
    coarse = torch.rand(batch * 3, 1, 12, 16, generator=generator) - 0.5
    background = F.interpolate(coarse, (height, width), mode="bilinear").view(batch, 3, 1, height, width)
    rows = torch.arange(height)[None, None, :, None] + 0.5
    columns = torch.arange(width)[None, None, None, :] + 0.5
    start = 40 + 20 * torch.rand(batch, 1, 1, 1, generator=generator)
    drift = 3 * torch.arange(frames)[None, :, None, None]
    distance = ((rows - 46).square() + (columns - start - drift - shift).square()).sqrt()
    coverage = (18.5 - distance).clamp(0, 1)
    sign = torch.where(torch.arange(batch) % 2 == 0, 1.0, -1.0)
    colour = sign[:, None] * torch.tensor([0.95, -0.9, 0.85])
    alpha = coverage[:, None]
    video = alpha * colour[:, :, None, None, None] + (1 - alpha) * background
    return video, coverage > 0.5, colour
