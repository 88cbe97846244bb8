"""Checks of what the encoders hand over, one clear sentence each."""

from __future__ import annotations

import math

from torch import Tensor

from foresight.adapters.config import AdapterConfig, Grid

__all__ = ["check_features", "check_grids"]


def check_features(config: AdapterConfig, vlm_hidden_states: Tensor, dino_hidden_states: Tensor) -> None:
    """Raise ValueError unless the features are [B, N, vlm_dim] and [B, M, dino_dim] with M at least 1."""
    streams = (("vlm", vlm_hidden_states, config.vlm_dim), ("dino", dino_hidden_states, config.dino_dim))
    for name, hidden_states, dim in streams:
        if hidden_states.ndim != 3 or hidden_states.shape[2] != dim:
            shape = tuple(hidden_states.shape)
            raise ValueError(f"{name}_hidden_states of shape {shape}: must be [batch, tokens, {dim}]")
    if vlm_hidden_states.shape[0] != dino_hidden_states.shape[0]:
        batches = f"{vlm_hidden_states.shape[0]} and {dino_hidden_states.shape[0]}"
        raise ValueError(f"batches of {batches}: vlm_hidden_states and dino_hidden_states must have the same")
    if dino_hidden_states.shape[1] == 0:
        raise ValueError("dino_hidden_states has no tokens: at least one is needed")


def check_grids(
    vlm_hidden_states: Tensor,
    dino_hidden_states: Tensor,
    vlm_grid: Grid | None,
    dino_grid: Grid | None,
    vlm_lengths: Tensor | None,
) -> None:
    """Raise ValueError unless each grid that is given has its stream's number of tokens.

    VLM tokens that come with true lengths may be padded beyond their grid.
    """
    padded = vlm_lengths is not None
    _check_grid("vlm", vlm_grid, vlm_hidden_states.shape[1], padded=padded)
    _check_grid("dino", dino_grid, dino_hidden_states.shape[1], padded=False)


def _check_grid(stream: str, grid: Grid | None, tokens: int, *, padded: bool) -> None:
    if grid is None:
        return
    expected = math.prod(grid)
    if tokens != expected and not (padded and tokens > expected):
        raise ValueError(f"{stream}_grid {grid}: has {expected} tokens, {stream}_hidden_states has {tokens}")
