# Triton is untyped, and its compile-time constants are named in capitals.
# mypy: disable-error-code="import-untyped,untyped-decorator,no-untyped-def,no-untyped-call"
# ruff: noqa: N803
"""The kernel for products with few rows: a linear layer with norm, GELU and residual folded in.

77 rows make little work, so that tiles are small enough to give every multiprocessor one. A block takes the contracted
axis in one step if it is short, its weights asked for before it waits for the kernel that makes its input; else in
steps, the loads of the next ones in flight while one is multiplied. The norm's statistics come from the input that is
loaded anyway; they are summed element by element, because a sum over warps in every step costs more than the product.
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
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PROGRAMMATIC: tl.constexpr,
):  # fmt: skip
    if PROGRAMMATIC == 1:
        gdc_launch_dependents()
    whole: tl.constexpr = DIM <= DEPTH and SPLITS == 1
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    depths = tl.arange(0, DEPTH)
    inside, used = rows < rows_total, columns < WIDTH
    target = rows[:, None] * WIDTH + columns[None, :]
    filled = inside[:, None] & used[None, :]
    shift = tl.load(bias + columns, mask=used, other=0.0)
    if NORM:
        column_sums = tl.load(sums + columns, mask=used, other=0.0)
    weights = weight + columns[None, :] * DIM
    if whole:
        w = tl.load(weights + depths[:, None], mask=used[None, :] & (depths < DIM)[:, None], other=0.0)
    if PROGRAMMATIC > 0:
        gdc_wait()
    if PROGRAMMATIC == 2:
        gdc_launch_dependents()
    if RESIDUAL:
        kept = tl.load(
            residual + (rows % residual_rows)[:, None] * WIDTH + columns[None, :], mask=filled, other=0.0
        )
    values = tl.zeros((ROWS, DEPTH), tl.float32)
    squares = tl.zeros((ROWS, DEPTH), tl.float32)
    result = tl.zeros((ROWS, COLUMNS), tl.float32)
    if whole:
        valid = inside[:, None] & (depths < DIM)[None, :]
        a = tl.load(x + rows[:, None] * DIM + depths[None, :], mask=valid, other=0.0)
        if NORM:
            values = a.to(tl.float32)
            squares = values * values
        result = tl.dot(a, w, result, input_precision="ieee")
    else:
        for step in range(0, DIM, DEPTH):
            here = depths + step
            if SPLITS > 1:
                a = _merge(x, logs, rows, here, step // HEAD, inside, rows_total, DIM, HEAD, SPLITS)
                a = a.to(weight.dtype.element_ty)
            else:
                valid = inside[:, None] & (here < DIM)[None, :]
                a = tl.load(x + rows[:, None] * DIM + here[None, :], mask=valid, other=0.0)
            w = tl.load(weights + here[:, None], mask=used[None, :] & (here < DIM)[:, None], other=0.0)
            if NORM:
                part = a.to(tl.float32)
                values += part
                squares += part * part
            result = tl.dot(a, w, result, input_precision="ieee")
    if NORM:
        mean = tl.sum(values, axis=1) / DIM
        variance = tl.sum(squares, axis=1) / DIM - mean * mean
        variance = tl.maximum(variance, 0.0, propagate_nan=tl.PropagateNan.ALL)
        # In fp64 where a compiler traces the launch.
        rstd = tl.rsqrt(variance + tl.cast(eps, tl.float32))
        result = rstd[:, None] * (result - mean[:, None] * column_sums[None, :])
    result += shift[None, :]
    if GELU:
        result = 0.5 * result * (1.0 + tl.erf(result * 0.7071067811865476))
    if RESIDUAL:
        result += kept
        tl.store(output_full + target, result, mask=filled)
    tl.store(output + target, result.to(output.dtype.element_ty), mask=filled)


@triton.jit
def _merge(
    parts, logs, rows, depths, head, inside, rows_total,
    DIM: tl.constexpr, HEAD: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    # Attention that was split over the context: each part is normalised and comes with its log of the sum. A step
    # lies within one head, so that the shares are one number for a row.
    heads: tl.constexpr = DIM // HEAD
    place = rows * heads + head
    largest = tl.load(logs + place, mask=inside, other=0.0)
    for split in tl.static_range(1, SPLITS):
        largest = tl.maximum(
            largest, tl.load(logs + split * rows_total * heads + place, mask=inside, other=0.0)
        )
    scale = tl.zeros(place.shape, tl.float32)
    merged = tl.zeros((rows.shape[0], depths.shape[0]), tl.float32)
    for split in tl.static_range(SPLITS):
        share = tl.exp2(tl.load(logs + split * rows_total * heads + place, mask=inside, other=0.0) - largest)
        source = (split * rows_total + rows)[:, None] * DIM + depths[None, :]
        merged += share[:, None] * tl.load(parts + source, mask=inside[:, None], other=0.0)
        scale += share
    return merged / scale[:, None]


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

    With `logs` [S, R, heads] fp32, `hidden_states` [S, R, K] holds the parts of an attention over a split context,
    which are merged first.
    """
    rows, dim = hidden_states.shape[-2:]
    width = weight.shape[0]
    output = torch.empty((rows, width), dtype=weight.dtype, device=weight.device)
    full = torch.empty(
        (rows, width) if residual is not None else (0,), dtype=torch.float32, device=weight.device
    )
    # A step of merged attention lies within one head.
    depth = min(launch.depth, triton.next_power_of_2(dim) if logs is None else head_dim)
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
    )  # fmt: skip
    return output, full
