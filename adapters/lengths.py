"""True lengths of padded token sequences: which tokens count, and how the others are kept out."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from foresight.adapters.config import Grid

__all__ = ["masked_mean", "true_tokens", "zero_tail"]


def true_tokens(lengths: Tensor, hidden_states: Tensor, *, grid: Grid | None = None) -> Tensor:
    """The boolean mask [B, N] of the first `lengths` [B] tokens of each row of `hidden_states` [B, N, C].

    Tokens past those of `grid` are padding. Raises ValueError for lengths of a wrong shape or type and, when
    they lie on the host, below 0 or above the tokens that are there. Lengths on an accelerator are not read,
    because that would stall it: below 0 counts as 0, above the tokens as all of them.
    """
    batch, tokens = hidden_states.shape[:2]
    if lengths.shape != (batch,):
        raise ValueError(f"vlm_lengths of shape {tuple(lengths.shape)}: must be ({batch},), one for each row")
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise ValueError(f"vlm_lengths of type {lengths.dtype}: must be whole numbers")
    most = tokens if grid is None else min(tokens, math.prod(grid))
    if lengths.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = [length for length in lengths.tolist() if not 0 <= length <= most]
        if wrong:
            raise ValueError(f"vlm_lengths {wrong[0]}: must be from 0 to {most}, the tokens that are there")
    steps = torch.arange(tokens, device=hidden_states.device)
    return steps < lengths.to(hidden_states.device).clamp(max=most)[:, None]


def zero_tail(hidden_states: Tensor, keep: Tensor) -> Tensor:
    """`hidden_states` [B, N, C] with zeros where `keep` [B, N] is false.

    Attention multiplies a masked token's value by a weight of zero, and 0 * NaN is NaN: so the padding's
    content is replaced before anything reads it.
    """
    return torch.where(keep[:, :, None], hidden_states, 0.0)


def masked_mean(hidden_states: Tensor, lengths: Tensor | None, grid: Grid | None = None) -> Tensor:
    """The mean [B, C] of each row's true tokens of `hidden_states` [B, N, C]; zeros for a row of length 0."""
    if lengths is None:
        return hidden_states.mean(1)
    keep = true_tokens(lengths, hidden_states, grid=grid)
    # In fp32, because the sum over a thousand tokens can pass the largest fp16.
    total = zero_tail(hidden_states, keep).sum(1, dtype=torch.float32)
    return (total / keep.sum(1, keepdim=True).clamp(min=1)).to(hidden_states.dtype)
