# Triton is untyped, and its compile-time constants are named in capitals.
# mypy: disable-error-code="import-untyped,untyped-decorator,no-untyped-def,no-untyped-call"
# ruff: noqa: N803
"""The kernel for products with few rows: a linear layer with norm, GELU and residual folded in.

With 77 rows the latency of one dependent step is all that counts, so a block asks for all of its weights at
once, before it waits for the kernel that makes its input; and groups of warps take a part of the contracted
axis each, because one chain of matrix instructions over all of it would last longer than the loads.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from foresight.kernels.launch import Launch
from foresight.kernels.launcher import start
from foresight.kernels.reference import EPS

__all__ = ["launch_linear"]


@triton.jit
def _linear_kernel(
    x, logs, weight, bias, sums, residual, output, output_full, rows_total, residual_rows, eps,
    DIM: tl.constexpr, WIDTH: tl.constexpr, HEAD: tl.constexpr, SPLITS: tl.constexpr,
    NORM: tl.constexpr, GELU: tl.constexpr, RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUPS: tl.constexpr,
    PROGRAMMATIC: tl.constexpr,
):  # fmt: skip
    if PROGRAMMATIC == 1:
        gdc_launch_dependents()
    part: tl.constexpr = DEPTH // GROUPS
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside, used = rows < rows_total, columns < WIDTH
    depths = tl.arange(0, GROUPS)[:, None] * part + tl.arange(0, part)[None, :]
    at = rows[None, :, None] * DIM
    in_row = inside[None, :, None]
    weights = weight + columns[None, None, :] * DIM
    in_column = used[None, None, :]
    w = tl.load(weights + depths[:, :, None], mask=in_column & (depths < DIM)[:, :, None], other=0.0)
    shift = tl.load(bias + columns, mask=used, other=0.0)
    if NORM:
        column_sums = tl.load(sums + columns, mask=used, other=0.0)
    if PROGRAMMATIC > 0:
        gdc_wait()
    if PROGRAMMATIC == 2:
        gdc_launch_dependents()
    if RESIDUAL:
        kept = tl.load(
            residual + (rows % residual_rows)[:, None] * WIDTH + columns[None, :],
            mask=inside[:, None] & used[None, :], other=0.0,
        )  # fmt: skip
    total = tl.zeros((ROWS,), tl.float32)
    squares = tl.zeros((ROWS,), tl.float32)
    result = tl.zeros((GROUPS, ROWS, COLUMNS), tl.float32)
    for step in range(0, DIM, DEPTH):
        here = depths[:, None, :] + step
        valid = in_row & (here < DIM)
        if SPLITS > 1:
            heads_here = (tl.arange(0, GROUPS) * part + step) // HEAD
            a = _merge(x, logs, rows, here, valid, heads_here, rows_total, DIM, HEAD, SPLITS)
            a = a.to(weight.dtype.element_ty)
        else:
            a = tl.load(x + at + here, mask=valid, other=0.0)
        if NORM:
            values = a.to(tl.float32)
            total += tl.sum(tl.sum(values, axis=2), axis=0)
            squares += tl.sum(tl.sum(values * values, axis=2), axis=0)
        following = w
        if DIM > DEPTH:
            later = depths[:, :, None] + step + DEPTH
            following = tl.load(weights + later, mask=in_column & (later < DIM), other=0.0)
        result = tl.dot(a, w, result, input_precision="ieee")
        w = following
    summed = tl.sum(result, axis=0)
    if NORM:
        mean = total / DIM
        variance = tl.maximum(squares / DIM - mean * mean, 0.0, propagate_nan=tl.PropagateNan.ALL)
        # In fp64 where a compiler traces the launch.
        rstd = tl.rsqrt(variance + tl.cast(eps, tl.float32))
        summed = rstd[:, None] * (summed - mean[:, None] * column_sums[None, :])
    summed += shift[None, :]
    if GELU:
        summed = 0.5 * summed * (1.0 + tl.erf(summed * 0.7071067811865476))
    target = rows[:, None] * WIDTH + columns[None, :]
    filled = inside[:, None] & used[None, :]
    if RESIDUAL:
        summed += kept
        tl.store(output_full + target, summed, mask=filled)
    tl.store(output + target, summed.to(output.dtype.element_ty), mask=filled)


@triton.jit
def _merge(
    parts, logs, rows, depths, valid, heads_here, rows_total,
    DIM: tl.constexpr, HEAD: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    # Attention that was split over the context: each part is normalised and comes with its log of the sum.
    # A group of warps lies within one head, so that the shares are one number for a row and a group.
    heads: tl.constexpr = DIM // HEAD
    place = rows[None, :] * heads + heads_here[:, None]
    known = (rows < rows_total)[None, :] & (heads_here < heads)[:, None]
    largest = tl.load(logs + place, mask=known, other=0.0)
    for split in tl.static_range(1, SPLITS):
        largest = tl.maximum(
            largest, tl.load(logs + split * rows_total * heads + place, mask=known, other=0.0)
        )
    merged = tl.zeros(valid.shape, tl.float32)
    scale = tl.zeros(place.shape, tl.float32)
    for split in tl.static_range(SPLITS):
        log = tl.load(logs + split * rows_total * heads + place, mask=known, other=0.0)
        share = tl.exp2(log - largest)
        source = (split * rows_total + rows)[None, :, None] * DIM + depths
        merged += share[:, :, None] * tl.load(parts + source, mask=valid, other=0.0)
        scale += share
    return merged / scale[:, :, None]


def launch_linear(
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor,
    sums: Tensor | None = None,
    residual: Tensor | None = None,
    activation: bool = False,
    *,
    logs: Tensor | None = None,
    head_dim: int = 16,
    launch: Launch,
    programmatic: int,
) -> tuple[Tensor, Tensor]:
    """Launch the kernel; arguments and result are those of `reference.fused_linear`.

    With `logs` [S, R, heads] fp32, `hidden_states` [S, R, K] fp32 holds the parts of an attention over a split
    context, which are merged first.
    """
    rows, dim = hidden_states.shape[-2:]
    width = weight.shape[0]
    output = torch.empty((rows, width), dtype=weight.dtype, device=weight.device)
    full = torch.empty(
        (rows, width) if residual is not None else (0,), dtype=torch.float32, device=weight.device
    )
    depth = min(launch.depth, triton.next_power_of_2(dim))
    groups = min(launch.groups, depth // 16)
    if logs is not None:
        groups = max(groups, depth // head_dim)
    grid = (triton.cdiv(rows, launch.rows), triton.cdiv(width, launch.columns), 1)
    # Triton wants a pointer where a kernel ignores an argument: the bias stands in.
    start(
        _linear_kernel, grid, launch, programmatic,
        hidden_states, bias if logs is None else logs, weight, bias, bias if sums is None else sums,
        bias if residual is None else residual, output, full,
        rows, rows if residual is None else residual.shape[0], EPS,
        DIM=dim, WIDTH=width, HEAD=head_dim, SPLITS=1 if logs is None else logs.shape[0],
        NORM=sums is not None, GELU=activation, RESIDUAL=residual is not None,
        ROWS=launch.rows, COLUMNS=launch.columns, DEPTH=depth,
        GROUPS=groups,
    )  # fmt: skip
    return output, full
