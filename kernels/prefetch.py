# Triton is untyped, and its compile-time constants are named in capitals.
# mypy: disable-error-code="import-untyped,untyped-decorator,no-untyped-def,no-untyped-call"
# ruff: noqa: N803
"""Weights on their way to the L2 cache while a block still waits for the kernel that makes its input.

A wide adapter's weights do not stay in the cache from call to call, and a product that waits first leaves the memory
idle whenever the kernel ahead of it is short of work.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import num_warps

__all__ = ["prefetch_tile"]

# One request a warp: lanes that named addresses of their own would be served one after another.
_ASK: tl.constexpr = tl.constexpr(
    "{ .reg .u32 warp; .reg .u64 place; mov.u32 warp, %tid.x; shr.u32 warp, warp, 5; "
    "mad.wide.u32 place, warp, $2, $1; cp.async.bulk.prefetch.L2.global [place], $3; mov.u32 $0, 0; }"
)


@triton.jit
def prefetch_tile(
    weight, row, column,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Ask for `ROWS` rows from `row` on and `SPAN` columns from `column` on of a weight [HEIGHT, WIDTH].

    It is a hint: nothing is asked for where tiles do not divide the weight. Needs compute capability 9.0.
    """
    warps: tl.constexpr = num_warps()
    size: tl.constexpr = weight.dtype.element_ty.primitive_bitwidth // 8
    place = (weight + row * WIDTH + column).to(tl.uint64)
    if HEIGHT % ROWS == 0 and WIDTH % SPAN == 0 and ROWS % warps == 0 and SPAN * size % 16 == 0:
        if SPAN == WIDTH:
            # Rows that lie one behind the other are one piece for each warp.
            _ask(place, ROWS // warps * WIDTH * size, ROWS // warps * WIDTH * size)
        else:
            for step in tl.static_range(ROWS // warps):
                _ask(place + step * warps * WIDTH * size, WIDTH * size, SPAN * size)


@triton.jit
def _ask(place, stride, size):
    tl.inline_asm_elementwise(
        _ASK, "=r,l,r,r", [place, tl.cast(stride, tl.uint32), tl.cast(size, tl.uint32)],
        dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip
