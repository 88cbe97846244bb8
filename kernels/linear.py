# Triton is untyped, and its compile-time constants are named in capitals.
# mypy: disable-error-code="import-untyped,untyped-decorator,no-untyped-def,no-untyped-call"
# ruff: noqa: N803
"""The kernel for products with few rows: a linear layer with norm, GELU and residual folded in.

77 rows make little work, and what a block reads decides how long it takes: every tile of rows reads all weights from
the L2 cache, every tile of columns the whole input. Weights are asked for before a block waits for the kernel that
makes its input. The norm's statistics come from the input that is loaded anyway; they are summed element by element,
because a sum over warps in every step costs more than the product.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from foresight.kernels.epilogue import end_tile, launch_sum, load_residual
from foresight.kernels.launch import Launch
from foresight.kernels.launcher import INTERPRETED, start
from foresight.kernels.prefetch import prefetch_tile
from foresight.kernels.reference import EPS

__all__ = ["launch_linear"]

# The interpreter knows no assembly.
_COMPILED: tl.constexpr = tl.constexpr(not INTERPRETED)


@triton.jit
def _linear_kernel(
    x, logs, weight, bias, sums, residual, output, output_full, rows_total, residual_rows, eps,
    DIM: tl.constexpr, WIDTH: tl.constexpr, HEAD: tl.constexpr, PARTS: tl.constexpr, SPLIT: tl.constexpr,
    NORM: tl.constexpr, GELU: tl.constexpr, RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PROGRAMMATIC: tl.constexpr,
):  # fmt: skip
    if PROGRAMMATIC == 1:
        gdc_launch_dependents()
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    first = tl.program_id(2) * SPLIT
    inside, used = rows < rows_total, columns < WIDTH
    target = rows[:, None] * WIDTH + columns[None, :]
    filled = inside[:, None] & used[None, :]
    if PROGRAMMATIC > 0 and tl.program_id(0) == 0:
        prefetch_tile(weight, tl.program_id(1) * COLUMNS, first, WIDTH, DIM, COLUMNS, SPLIT)
    shift = tl.load(bias + columns, mask=used, other=0.0)
    if NORM:
        column_sums = tl.load(sums + columns, mask=used, other=0.0)
    if PROGRAMMATIC > 0:
        gdc_wait()
    if PROGRAMMATIC == 2:
        gdc_launch_dependents()
    kept = tl.zeros((ROWS, COLUMNS), tl.float32)
    if RESIDUAL:
        kept = load_residual(residual, rows, columns, filled, residual_rows, WIDTH)
    result, values, squares = _multiply(
        x, logs, weight, rows, columns, first, inside, used, rows_total,
        DIM, HEAD, PARTS, SPLIT, NORM, ROWS, COLUMNS, DEPTH,
    )  # fmt: skip
    if NORM:
        mean = tl.sum(values, axis=1) / DIM
        variance = tl.sum(squares, axis=1) / DIM - mean * mean
        variance = tl.maximum(variance, 0.0, propagate_nan=tl.PropagateNan.ALL)
        # In fp64 where a compiler traces the launch.
        rstd = tl.rsqrt(variance + tl.cast(eps, tl.float32))
        result = rstd[:, None] * (result - mean[:, None] * column_sums[None, :])
    if SPLIT < DIM:
        tl.store(output_full + tl.program_id(2) * rows_total * WIDTH + target, result, mask=filled)
    else:
        end_tile(result, shift, kept, output, output_full, target, filled, GELU, RESIDUAL)


@triton.jit
def _multiply(
    x, logs, weight, rows, columns, first, inside, used, rows_total,
    DIM: tl.constexpr, HEAD: tl.constexpr, PARTS: tl.constexpr, SPLIT: tl.constexpr, NORM: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    # The product over `SPLIT` of the contracted axis, and what a row's sums of values and squares are made of.
    values = tl.zeros((ROWS, DEPTH), tl.float32)
    squares = tl.zeros((ROWS, DEPTH), tl.float32)
    result = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in range(0, SPLIT, DEPTH):
        here = first + step + tl.arange(0, DEPTH)
        if PARTS > 1:
            head = (first + step) // HEAD
            a = _merge(x, logs, rows, here, head, inside, rows_total, DIM, HEAD, PARTS)
            a = a.to(weight.dtype.element_ty)
        else:
            valid = inside[:, None] & (here < DIM)[None, :]
            a = tl.load(x + rows[:, None] * DIM + here[None, :], mask=valid, other=0.0)
        w = tl.load(
            weight + columns[None, :] * DIM + here[:, None],
            mask=used[None, :] & (here < DIM)[:, None],
            other=0.0,
        )
        if NORM:
            part = a.to(tl.float32)
            values += part
            squares += part * part
        result = tl.dot(a, w, result, input_precision="ieee")
        if NORM and _COMPILED:
            # Triton (3.6 and 3.8) leaves each step's wgmma running into the next one, but gives a tile that registers
            # read too no buffer to spare for that: the copy ahead would overwrite what the wgmma still reads. A use of
            # the result in the loop, of no instructions, makes each step wait for its own product.
            result = tl.inline_asm_elementwise("", "=r,0", [result], dtype=tl.float32, is_pure=True, pack=1)
    return result, values, squares


@triton.jit
def _merge(
    parts, logs, rows, depths, head, inside, rows_total,
    DIM: tl.constexpr, HEAD: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    # Attention that was split over the context: each part is normalised and comes with its log of the sum. A step
    # lies within one head, so that the shares are one number for a row.
    heads: tl.constexpr = DIM // HEAD
    place = rows * heads + head
    largest = tl.load(logs + place, mask=inside, other=0.0)
    for part in tl.static_range(1, PARTS):
        largest = tl.maximum(
            largest, tl.load(logs + part * rows_total * heads + place, mask=inside, other=0.0)
        )
    scale = tl.zeros(place.shape, tl.float32)
    merged = tl.zeros((rows.shape[0], depths.shape[0]), tl.float32)
    for part in tl.static_range(PARTS):
        share = tl.exp2(tl.load(logs + part * rows_total * heads + place, mask=inside, other=0.0) - largest)
        source = (part * rows_total + rows)[:, None] * DIM + depths[None, :]
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
    which are merged first. A product with a norm is never split, because its statistics need all of a row.
    """
    rows, dim = hidden_states.shape[-2:]
    width = weight.shape[0]
    output = torch.empty((rows, width), dtype=weight.dtype, device=weight.device)
    full = torch.empty(
        (rows, width) if residual is not None else (0,), dtype=torch.float32, device=weight.device
    )
    # A step of merged attention lies within one head.
    depth = min(launch.depth, triton.next_power_of_2(dim) if logs is None else head_dim)
    split = dim
    if launch.splits > 1 and sums is None:
        split = min(dim, triton.cdiv(triton.cdiv(dim, launch.splits), depth) * depth)
    splits = triton.cdiv(dim, split)
    parts = full if splits == 1 else full.new_empty((splits, rows, width))
    grid = (triton.cdiv(rows, launch.rows), triton.cdiv(width, launch.columns), splits)
    # Triton wants a pointer where a kernel ignores an argument: the bias stands in.
    start(
        _linear_kernel, grid, launch, programmatic,
        hidden_states, bias if logs is None else logs, weight, bias, bias if sums is None else sums,
        bias if residual is None else residual, output, parts,
        rows, rows if residual is None else residual.shape[0], EPS,
        DIM=dim, WIDTH=width, HEAD=head_dim, PARTS=1 if logs is None else logs.shape[0], SPLIT=split,
        NORM=sums is not None, GELU=activation, RESIDUAL=residual is not None and splits == 1,
        ROWS=launch.rows, COLUMNS=launch.columns, DEPTH=depth,
    )  # fmt: skip
    if splits > 1:
        launch_sum(parts, bias, residual, activation, output, full, programmatic=programmatic)
    return output, full
