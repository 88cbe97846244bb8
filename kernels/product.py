# Triton is untyped, and its compile-time constants are named in capitals.
# mypy: disable-error-code="import-untyped,untyped-decorator,no-untyped-def,no-untyped-call"
# ruff: noqa: N803
"""The kernel for products with many rows: the keys and values of all layers at once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from foresight.kernels.launch import Launch
from foresight.kernels.launcher import start
from foresight.kernels.prefetch import prefetch_tile

__all__ = ["launch_product"]


@triton.jit
def _product_kernel(
    x, weight, bias, output, rows_total,
    DIM: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PROGRAMMATIC: tl.constexpr,
):  # fmt: skip
    if PROGRAMMATIC == 1:
        gdc_launch_dependents()
    # Blocks that run at one time share their weights, which so come from the memory bit by bit.
    row_tiles = tl.cdiv(rows_total, ROWS)
    row, column = tl.program_id(0) % row_tiles * ROWS, tl.program_id(0) // row_tiles * COLUMNS
    rows, columns = row + tl.arange(0, ROWS), column + tl.arange(0, COLUMNS)
    depths = tl.arange(0, DEPTH)
    if PROGRAMMATIC > 0 and row == 0:
        prefetch_tile(weight, column, 0, WIDTH, DIM, COLUMNS, DIM)
    inside, used = rows < rows_total, columns < WIDTH
    shift = tl.load(bias + columns, mask=used, other=0.0)
    if PROGRAMMATIC > 0:
        gdc_wait()
    if PROGRAMMATIC == 2:
        gdc_launch_dependents()
    result = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in range(0, DIM, DEPTH):
        here = depths + step
        a = tl.load(
            x + rows[:, None] * DIM + here[None, :], mask=inside[:, None] & (here < DIM)[None, :], other=0.0
        )
        w = tl.load(
            weight + columns[None, :] * DIM + here[:, None],
            mask=used[None, :] & (here < DIM)[:, None], other=0.0,
        )  # fmt: skip
        result = tl.dot(a, w, result, input_precision="ieee")
    result += shift[None, :]
    tl.store(
        output + rows[:, None] * WIDTH + columns[None, :], result.to(output.dtype.element_ty),
        mask=inside[:, None] & used[None, :],
    )  # fmt: skip


def launch_product(
    hidden_states: Tensor, weight: Tensor, bias: Tensor, *, launch: Launch, programmatic: int
) -> Tensor:
    """Launch the kernel; arguments and result are those of `reference.product`."""
    rows, dim = hidden_states.shape
    width = weight.shape[0]
    output = torch.empty((rows, width), dtype=hidden_states.dtype, device=hidden_states.device)
    tiles = triton.cdiv(rows, launch.rows) * triton.cdiv(width, launch.columns)
    start(
        _product_kernel, (tiles, 1, 1), launch, programmatic, hidden_states, weight, bias, output, rows,
        DIM=dim, WIDTH=width, ROWS=launch.rows, COLUMNS=launch.columns, DEPTH=launch.depth,
    )  # fmt: skip
    return output
