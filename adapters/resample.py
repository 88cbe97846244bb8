"""Tokens from an encoder's grid onto the grid of the latents."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from foresight.adapters.config import Grid

__all__ = ["resample_grid"]


def resample_grid(hidden_states: Tensor, grid: Grid, output_grid: Grid, keep: Tensor | None = None) -> Tensor:
    """Resample tokens [B, N, C] of `grid` = (t, h, w), N = t * h * w, to [B, T', H', W', C] of `output_grid`.

    Linear in each axis, and where the grid shrinks over the whole span of an output position (the antialiased
    triangle filter of image resizing). With a boolean `keep` [B, N] the other tokens have no weight; an
    output that no kept token reaches is zero.
    """
    if keep is None:
        return _resample(hidden_states, grid, output_grid)
    kept = _resample(torch.where(keep[:, :, None], hidden_states, 0.0), grid, output_grid)
    coverage = _resample(keep[:, :, None].to(hidden_states.dtype), grid, output_grid)
    return kept / torch.where(coverage > 0, coverage, 1.0)


def _resample(hidden_states: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
    if hidden_states.shape[1] != math.prod(grid):
        raise ValueError(f"grid {grid}: has {math.prod(grid)} tokens, not {hidden_states.shape[1]}")
    volume = hidden_states.view(-1, *grid, hidden_states.shape[2])
    time, row, column = (
        _axis_weights(size, output, hidden_states) for size, output in zip(grid, output_grid, strict=True)
    )
    volume = torch.einsum("bthwc,Tt->bThwc", volume, time)
    volume = torch.einsum("bthwc,Hh->btHwc", volume, row)
    return torch.einsum("bthwc,Ww->bthWc", volume, column)


def _axis_weights(size: int, output: int, like: Tensor) -> Tensor:
    """The weights [output, size] of one axis, each row of sum 1."""
    # Made on the device: copying a table from the host at every call would break the capture of a graph.
    scale = size / output
    centres = (torch.arange(output, device=like.device) + 0.5) * scale - 0.5
    steps = torch.arange(size, device=like.device)
    # Beyond the first and last token the nearest one counts.
    distances = (steps - centres.clamp(0, size - 1)[:, None]).abs() / max(scale, 1.0)
    weights = (1.0 - distances).clamp(min=0.0)
    return (weights / weights.sum(1, keepdim=True)).to(like.dtype)
