"""How far a compiled adapter lies from eager PyTorch in fp32: cases, figure and bound."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foresight.adapters import Adapter, Compiled, EngineBucket, EngineParity, Grid, engine_inputs
from foresight.export.grids import find_grid

__all__ = ["ParityCase", "compare_outputs", "example_inputs", "measure_parity", "parity_cases"]

_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ParityCase:
    """Features fp32 [B, N, vlm_dim] and [B, M, dino_dim], their grids, and true lengths [B] of the VLM's tokens.

    What lies past a true length is NaN: it must not reach the output.
    """

    vlm_hidden_states: Tensor
    dino_hidden_states: Tensor
    vlm_grid: Grid
    dino_grid: Grid
    vlm_lengths: Tensor

    def inputs(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """What a compiled adapter takes, the features as `dtype`."""
        features = self.vlm_hidden_states.to(dtype), self.dino_hidden_states.to(dtype)
        return engine_inputs(*features, self.vlm_grid, self.dino_grid, self.vlm_lengths)

    @torch.inference_mode()
    def eager(self, adapter: Adapter) -> Tensor:
        """What the adapter itself makes of the case, in its own dtype and on its own device; fp32 on the CPU."""
        parameter = next(adapter.parameters())
        features = (x.to(parameter) for x in (self.vlm_hidden_states, self.dino_hidden_states))
        output: Tensor = adapter(
            *features, vlm_grid=self.vlm_grid, dino_grid=self.dino_grid, vlm_lengths=self.vlm_lengths
        )
        return output.float().cpu()


def parity_cases(adapter: Adapter, buckets: Sequence[EngineBucket], *, static: bool) -> list[ParityCase]:
    """For every bucket its full length, a padded one and the shortest; other shapes too unless `static`."""
    cases = []
    for seed, bucket in enumerate(buckets):
        n = bucket.vlm_tokens
        cases += [
            _case(adapter, bucket, length, 10 * seed + k) for k, length in enumerate((n, n * 2 // 3, 1))
        ]
        if not static:
            other = EngineBucket(
                batch=bucket.batch + 1, vlm_tokens=max(2, n // 2 + 1), dino_tokens=bucket.dino_tokens
            )
            cases.append(_case(adapter, other, other.vlm_tokens - 1, 10 * seed + 9))
    return cases


def example_inputs(adapter: Adapter, bucket: EngineBucket, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Inputs of a bucket's shape to trace with."""
    return _case(adapter, bucket, bucket.vlm_tokens, seed=0).inputs(dtype)


def measure_parity(
    adapter: Adapter,
    cases: Sequence[ParityCase],
    compiled: Compiled,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> EngineParity:
    """Run `compiled`, whose dtype and device are given, on all cases and compare: see `compare_outputs`."""
    outputs = (compiled(case.inputs(dtype)) for case in cases)
    return compare_outputs(adapter, cases, outputs, dtype=dtype, device=device)


def compare_outputs(
    adapter: Adapter,
    cases: Sequence[ParityCase],
    outputs: Iterable[Tensor],
    *,
    dtype: torch.dtype,
    device: torch.device | str,
) -> EngineParity:
    """Compare a member's output for every case with `adapter`, which is fp32; the member is of `dtype` on `device`.

    An fp32 member may differ by 1e-4. One of a lower precision may differ by twice what eager PyTorch in that
    precision does, and that much more (the rule of flash-attention's tests). The figure is of the case that comes
    nearest to its bound or passes it most; an output that is not finite counts as infinitely far.
    """
    low = None
    if dtype != torch.float32:
        low = copy.deepcopy(adapter).to(device=device, dtype=dtype)
    worst = (0.0, _TOLERANCE)
    for case, output in zip(cases, outputs, strict=True):
        reference = case.eager(adapter)
        bound = _TOLERANCE
        if low is not None:
            bound += 2 * _distance(case.eager(low), reference)
        error = _distance(output.float().cpu(), reference)
        worst = max(worst, (error, bound), key=lambda pair: pair[0] / pair[1])
    return EngineParity(max_error=min(worst[0], 1e30), bound=worst[1], cases=len(cases))


def _distance(output: Tensor, reference: Tensor) -> float:
    if output.shape != reference.shape or not torch.isfinite(output).all():
        return math.inf
    return (output - reference).abs().max().item()


def _case(adapter: Adapter, bucket: EngineBucket, length: int, seed: int) -> ParityCase:
    config, generator = adapter.config, torch.Generator().manual_seed(seed)
    vlm_grid = find_grid(bucket.vlm_tokens, config.max_grid)
    dino_grid = find_grid(bucket.dino_tokens, config.dino_max_grid)
    if math.prod(dino_grid) != bucket.dino_tokens:
        raise ValueError(f"bucket of {bucket.dino_tokens} DINO tokens: they lie on no grid")
    length = max(1, min(length, math.prod(vlm_grid)))
    lengths = torch.full((bucket.batch,), length)
    # The rows of a batch differ in length, as clips that wait together do.
    lengths[1::2] = max(1, length // 2)
    vlm = torch.randn(bucket.batch, bucket.vlm_tokens, config.vlm_dim, generator=generator)
    vlm[torch.arange(bucket.vlm_tokens) >= lengths[:, None]] = math.nan
    dino = torch.randn(bucket.batch, bucket.dino_tokens, config.dino_dim, generator=generator)
    return ParityCase(
        vlm_hidden_states=vlm,
        dino_hidden_states=dino,
        vlm_grid=vlm_grid,
        dino_grid=dino_grid,
        vlm_lengths=lengths,
    )
