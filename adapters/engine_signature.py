"""What every compiled member of an engine takes and returns: the contract of export and runtime."""

from __future__ import annotations

import torch
from torch import Tensor

from foresight.adapters.config import Grid

__all__ = ["ENGINE_INPUTS", "ENGINE_OUTPUT", "engine_inputs"]

ENGINE_INPUTS = ("vlm_hidden_states", "dino_hidden_states", "vlm_grid", "dino_grid", "vlm_lengths")
ENGINE_OUTPUT = "output"


def engine_inputs(
    vlm_hidden_states: Tensor,
    dino_hidden_states: Tensor,
    vlm_grid: Grid | None,
    dino_grid: Grid | None,
    vlm_lengths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The five tensors of `ENGINE_INPUTS` from what an adapter's `forward` takes.

    The features go through. A grid becomes int64 [3], zeros where there is none (no token has a position
    then); lengths become int64 [B], all tokens where there are none. Grids and lengths that lie on the host
    stay there.
    """
    batch, tokens = vlm_hidden_states.shape[:2]
    if vlm_lengths is None:
        vlm_lengths = torch.full((batch,), tokens, dtype=torch.int64)
    grids = (torch.tensor(grid or (0, 0, 0), dtype=torch.int64) for grid in (vlm_grid, dino_grid))
    return (vlm_hidden_states, dino_hidden_states, *grids, vlm_lengths.to(torch.int64))  # type: ignore[return-value]
