# Triton is untyped, and its compile-time constants are named in capitals.
# mypy: disable-error-code="import-untyped,untyped-decorator,no-untyped-def,no-untyped-call"
# ruff: noqa: N803
"""What ends a linear layer: bias, GELU and residual, in the product's own kernel or after its parts are added.

A narrow product over a long axis is cut along that axis, so that few blocks read the same input and yet all
multiprocessors have work. The parts are added in a launch of their own, always in the same order.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from foresight.kernels.launch import Launch
from foresight.kernels.launcher import start

__all__ = ["end_tile", "launch_sum", "load_residual"]


@triton.jit
def load_residual(residual, rows, columns, filled, residual_rows, WIDTH: tl.constexpr):
    """The rows of a residual that is repeated over the batch."""
    places = (rows % residual_rows)[:, None] * WIDTH + columns[None, :]
    return tl.load(residual + places, mask=filled, other=0.0)


@triton.jit
def end_tile(
    result, shift, kept, output, output_full, target, filled, GELU: tl.constexpr, RESIDUAL: tl.constexpr
):
    """Add the bias `shift`, apply the GELU, add the residual `kept` and store."""
    result += shift[None, :]
    if GELU:
        result = 0.5 * result * (1.0 + tl.erf(result * 0.7071067811865476))
    if RESIDUAL:
        result += kept
        tl.store(output_full + target, result, mask=filled)
    tl.store(output + target, result.to(output.dtype.element_ty), mask=filled)


@triton.jit
def _sum_kernel(
    parts, bias, residual, output, output_full, rows_total, residual_rows,
    WIDTH: tl.constexpr, SPLITS: tl.constexpr, GELU: tl.constexpr, RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PROGRAMMATIC: tl.constexpr,
):  # fmt: skip
    if PROGRAMMATIC == 1:
        gdc_launch_dependents()
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside, used = rows < rows_total, columns < WIDTH
    target = rows[:, None] * WIDTH + columns[None, :]
    filled = inside[:, None] & used[None, :]
    shift = tl.load(bias + columns, mask=used, other=0.0)
    if PROGRAMMATIC > 0:
        gdc_wait()
    if PROGRAMMATIC == 2:
        gdc_launch_dependents()
    result = tl.zeros((ROWS, COLUMNS), tl.float32)
    kept = result
    if RESIDUAL:
        kept = load_residual(residual, rows, columns, filled, residual_rows, WIDTH)
    for split in tl.static_range(SPLITS):
        result += tl.load(parts + split * rows_total * WIDTH + target, mask=filled, other=0.0)
    end_tile(result, shift, kept, output, output_full, target, filled, GELU, RESIDUAL)


# Small blocks: every multiprocessor gets one or two, and a thread asks for all its parts at once.
_SUM = Launch(rows=2, columns=256, warps=4, stages=1)


def launch_sum(
    parts: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    activation: bool,
    output: Tensor,
    output_full: Tensor,
    *,
    programmatic: int,
) -> None:
    """Add `parts` [S, R, N] fp32 and end the layer as `reference.fused_linear` does, into the two outputs."""
    splits, rows, width = parts.shape
    grid = (triton.cdiv(rows, _SUM.rows), triton.cdiv(width, _SUM.columns), 1)
    # Triton wants a pointer where a kernel ignores an argument: the bias stands in.
    start(
        _sum_kernel, grid, _SUM, programmatic,
        parts, bias, bias if residual is None else residual, output, output_full,
        rows, rows if residual is None else residual.shape[0],
        WIDTH=width, SPLITS=splits, GELU=activation, RESIDUAL=residual is not None,
        ROWS=_SUM.rows, COLUMNS=_SUM.columns,
    )  # fmt: skip
