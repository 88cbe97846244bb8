"""What compiled members do not check themselves: shapes, grids, lengths; and the padding up to a bucket."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from foresight.adapters import AdapterConfig, EngineBucket, Grid
from foresight.adapters.features import check_features, check_grids

__all__ = ["check_inputs", "find_bucket", "pad_to_bucket"]

_NEED_GRIDS = ("linear", "mlp")


def check_inputs(
    config: AdapterConfig,
    vlm_hidden_states: Tensor,
    dino_hidden_states: Tensor,
    vlm_grid: Grid | None,
    dino_grid: Grid | None,
    vlm_lengths: Tensor | None,
) -> None:
    """Raise ValueError for all that `Adapter.forward` refuses."""
    check_features(config, vlm_hidden_states, dino_hidden_states)
    check_grids(vlm_hidden_states, dino_hidden_states, vlm_grid, dino_grid, vlm_lengths)
    if config.architecture in _NEED_GRIDS and (vlm_grid is None or dino_grid is None):
        raise ValueError(
            f"vlm_grid {vlm_grid}, dino_grid {dino_grid}: {config.architecture} needs both grids"
        )
    for name, grid, most in (("vlm", vlm_grid, config.max_grid), ("dino", dino_grid, config.dino_max_grid)):
        if grid is not None and any(not 1 <= size <= limit for size, limit in zip(grid, most, strict=True)):
            raise ValueError(f"{name}_grid {grid}: every size must be from 1 to that of max_grid {most}")
    if vlm_lengths is not None:
        _check_lengths(vlm_lengths, vlm_hidden_states, vlm_grid)


def find_bucket(buckets: Sequence[EngineBucket], inputs: tuple[Tensor, ...]) -> EngineBucket:
    """The smallest bucket that holds the inputs; raises ValueError where none does."""
    batch, tokens = inputs[0].shape[:2]
    dino = inputs[1].shape[1]
    for bucket in sorted(buckets, key=lambda each: (each.vlm_tokens, each.batch)):
        if bucket.batch >= batch and bucket.vlm_tokens >= tokens and bucket.dino_tokens == dino:
            return bucket
    made = ", ".join(f"{each.batch}x{each.vlm_tokens}x{each.dino_tokens}" for each in buckets)
    raise ValueError(f"features of {batch}x{tokens}x{dino} (clips, VLM and DINO tokens): made for {made}")


def pad_to_bucket(inputs: tuple[Tensor, ...], bucket: EngineBucket) -> tuple[Tensor, ...]:
    """The inputs with zeros up to the bucket's clips and VLM tokens; the true lengths keep them out."""
    vlm, dino, vlm_grid, dino_grid, lengths = inputs
    rows, tokens = bucket.batch - vlm.shape[0], bucket.vlm_tokens - vlm.shape[1]
    if not rows and not tokens:
        return inputs
    vlm, dino = pad(vlm, (0, 0, 0, tokens, 0, rows)), pad(dino, (0, 0, 0, 0, 0, rows))
    return vlm, dino, vlm_grid, dino_grid, pad(lengths, (0, rows))


def _check_lengths(lengths: Tensor, vlm_hidden_states: Tensor, vlm_grid: Grid | None) -> None:
    batch, most = vlm_hidden_states.shape[:2]
    if lengths.shape != (batch,):
        raise ValueError(f"vlm_lengths of shape {tuple(lengths.shape)}: must be ({batch},), one for each row")
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise ValueError(f"vlm_lengths of type {lengths.dtype}: must be whole numbers")
    if vlm_grid is not None:
        most = min(most, vlm_grid[0] * vlm_grid[1] * vlm_grid[2])
    # Lengths on an accelerator are not read, because that would stall it.
    wrong = (
        [each for each in lengths.tolist() if not 0 <= each <= most] if lengths.device.type == "cpu" else []
    )
    if wrong:
        raise ValueError(f"vlm_lengths {wrong[0]}: must be from 0 to {most}, the tokens that are there")
