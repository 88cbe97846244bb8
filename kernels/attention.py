# Triton is untyped, and its compile-time constants are named in capitals.
# mypy: disable-error-code="import-untyped,untyped-decorator,no-untyped-def,no-untyped-call"
# ruff: noqa: N803
"""The kernel for attention: scores, softmax and values in one pass, split over heads, queries and keys.

Each group of warps keeps the softmax of its own part of the keys, so that nothing crosses warps before the
end. Parts of a split context are merged where the output projection reads them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from foresight.kernels.launch import Launch
from foresight.kernels.launcher import start
from foresight.kernels.linear import launch_linear
from foresight.kernels.reference import EPS

__all__ = ["launch_attend"]

_LOG2_E = 1.4426950408889634


@triton.jit
def _attend_kernel(
    query, query_weight, query_bias, query_sums, keys_values, lengths, output, logs,
    queries, keys, query_step, split_keys, scale, always, rows_total, eps,
    QUERY_WIDTH: tl.constexpr, KEY_WIDTH: tl.constexpr, QUERY_AT: tl.constexpr,
    KEY_AT: tl.constexpr, VALUE_AT: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr,
    SPLITS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, GROUPS: tl.constexpr,
    MADE: tl.constexpr, WIDTH: tl.constexpr, MADE_DEPTH: tl.constexpr, MADE_GROUPS: tl.constexpr,
    PROGRAMMATIC: tl.constexpr,
):  # fmt: skip
    if PROGRAMMATIC == 1:
        gdc_launch_dependents()
    row, head = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    split = tl.program_id(2)
    part: tl.constexpr = DEPTH // GROUPS
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, HEAD)
    inside = rows < queries
    count = tl.minimum(always + tl.load(lengths + row), keys)
    first = split * split_keys
    last = tl.minimum(first + split_keys, count)
    if MADE:
        made_part: tl.constexpr = MADE_DEPTH // MADE_GROUPS
        depths = tl.arange(0, MADE_GROUPS)[:, None] * made_part + tl.arange(0, made_part)[None, :]
        lines = (head * HEAD + dims)[None, None, :]
        w = tl.load(
            query_weight + lines * WIDTH + depths[:, :, None], mask=(depths < WIDTH)[:, :, None], other=0.0
        )  # fmt: skip
        shift = tl.load(query_bias + head * HEAD + dims)
        column_sums = tl.load(query_sums + head * HEAD + dims)
    if PROGRAMMATIC > 0:
        gdc_wait()
    if PROGRAMMATIC == 2:
        gdc_launch_dependents()
    if MADE:
        q = _make_query(
            query + row * queries * WIDTH, w, query_weight, shift, column_sums, rows, inside, head, eps,
            WIDTH, HEAD, ROWS, MADE_DEPTH, MADE_GROUPS,
        )  # fmt: skip
    else:
        q = tl.load(
            query + (row * query_step + rows)[:, None] * QUERY_WIDTH + QUERY_AT + head * HEAD + dims[None, :],
            mask=inside[:, None], other=0.0,
        )  # fmt: skip
    q = tl.broadcast_to(q[None, :, :], (GROUPS, ROWS, HEAD))
    places = tl.arange(0, GROUPS)[:, None] * part + tl.arange(0, part)[None, :]
    base = keys_values + row * keys * KEY_WIDTH + head * HEAD
    largest = tl.full((GROUPS, ROWS), -1.0e30, tl.float32)
    total = tl.zeros((GROUPS, ROWS), tl.float32)
    mixed = tl.zeros((GROUPS, ROWS, HEAD), tl.float32)
    for step in range(first, last, DEPTH):
        here = step + places
        valid = here < last
        k = tl.load(
            base + KEY_AT + here[:, None, :] * KEY_WIDTH + dims[None, :, None],
            mask=valid[:, None, :],
            other=0.0,
        )
        v = tl.load(
            base + VALUE_AT + here[:, :, None] * KEY_WIDTH + dims[None, None, :],
            mask=valid[:, :, None],
            other=0.0,
        )
        # A compiler that traces the launch passes floats in fp64, and all that they touch would follow.
        scores = tl.dot(q, k, input_precision="ieee") * tl.cast(scale, tl.float32)
        scores = tl.where(valid[:, None, :], scores, -1.0e30)
        higher = tl.maximum(largest, tl.max(scores, axis=2))
        shares = tl.where(valid[:, None, :], tl.exp2(scores - higher[:, :, None]), 0.0)
        shrink = tl.exp2(largest - higher)
        total = total * shrink + tl.sum(shares, axis=2)
        mixed = tl.dot(shares.to(v.dtype), v, mixed * shrink[:, :, None], input_precision="ieee")
        largest = higher
    top = tl.max(largest, axis=0)
    shrink = tl.exp2(largest - top[None, :])
    total_all = tl.sum(total * shrink, axis=0)
    mixed_all = tl.sum(mixed * shrink[:, :, None], axis=0)
    # A part of the context that the true length leaves empty counts for nothing.
    empty = total_all == 0.0
    mixed_all = mixed_all / tl.where(empty, 1.0, total_all)[:, None]
    target = row * queries + rows
    if SPLITS > 1:
        log = tl.where(empty, -1.0e30, top + tl.log2(tl.where(empty, 1.0, total_all)))
        tl.store(logs + (split * rows_total + target) * HEADS + head, log, mask=inside)
    place = (split * rows_total + target)[:, None] * (HEADS * HEAD) + head * HEAD + dims[None, :]
    tl.store(output + place, mixed_all.to(output.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _make_query(
    x, w, weight, shift, column_sums, rows, inside, head, eps,
    WIDTH: tl.constexpr, HEAD: tl.constexpr, ROWS: tl.constexpr,
    DEPTH: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    # One head's share of the norm and the query projection; the first weights `w` were asked for earlier.
    part: tl.constexpr = DEPTH // GROUPS
    depths = tl.arange(0, GROUPS)[:, None] * part + tl.arange(0, part)[None, :]
    lines = weight + (head * HEAD + tl.arange(0, HEAD))[None, None, :] * WIDTH
    total = tl.zeros((ROWS,), tl.float32)
    squares = tl.zeros((ROWS,), tl.float32)
    result = tl.zeros((GROUPS, ROWS, HEAD), tl.float32)
    for step in range(0, WIDTH, DEPTH):
        here = depths[:, None, :] + step
        a = tl.load(
            x + rows[None, :, None] * WIDTH + here, mask=inside[None, :, None] & (here < WIDTH), other=0.0
        )
        following = w
        if WIDTH > DEPTH:
            later = depths[:, :, None] + step + DEPTH
            following = tl.load(lines + later, mask=later < WIDTH, other=0.0)
        values = a.to(tl.float32)
        total += tl.sum(tl.sum(values, axis=2), axis=0)
        squares += tl.sum(tl.sum(values * values, axis=2), axis=0)
        result = tl.dot(a, w, result, input_precision="ieee")
        w = following
    mean = total / WIDTH
    variance = tl.maximum(squares / WIDTH - mean * mean, 0.0, propagate_nan=tl.PropagateNan.ALL)
    rstd = tl.rsqrt(variance + tl.cast(eps, tl.float32))
    made = rstd[:, None] * (tl.sum(result, axis=0) - mean[:, None] * column_sums[None, :]) + shift[None, :]
    return made.to(w.dtype)


def launch_attend(
    query: Tensor,
    keys_values: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor,
    lengths: Tensor,
    heads: int,
    query_column: int,
    key_column: int,
    value_column: int,
    always: int,
    query_weight: Tensor | None = None,
    query_bias: Tensor | None = None,
    query_sums: Tensor | None = None,
    *,
    attend: Launch,
    project: Launch,
    programmatic: int,
) -> tuple[Tensor, Tensor]:
    """Launch the attention and its output projection; arguments and result as in `reference.attend`."""
    batch, keys, key_width = keys_values.shape
    queries, query_width = query.shape[1:]
    width = weight.shape[0]
    steps = triton.cdiv(keys, attend.depth)
    split_keys = triton.cdiv(steps, min(attend.splits, steps)) * attend.depth
    splits = triton.cdiv(keys, split_keys)
    dtype = torch.float32 if splits > 1 else query.dtype
    mixed = torch.empty((splits, batch * queries, width), dtype=dtype, device=query.device)
    logs = torch.empty((splits, batch * queries, heads), dtype=torch.float32, device=query.device)
    # What a block holds of the query's projection: all of it in half of its registers, or a quarter at a time
    # with the next in flight.
    made_depth = triton.next_power_of_2(width)
    if made_depth * (width // heads) > 4096 * attend.warps:
        made_depth = 2048 * attend.warps // (width // heads)
    start(
        _attend_kernel, (triton.cdiv(queries, attend.rows), batch * heads, splits), attend, programmatic,
        query, *(weight if x is None else x for x in (query_weight, query_bias, query_sums)),
        keys_values, lengths, mixed, logs, queries, keys, queries if query.shape[0] > 1 else 0,
        split_keys, _LOG2_E * (width // heads) ** -0.5, always, batch * queries, EPS,
        QUERY_WIDTH=query_width, KEY_WIDTH=key_width, QUERY_AT=query_column, KEY_AT=key_column,
        VALUE_AT=value_column, HEADS=heads, HEAD=width // heads, SPLITS=splits, ROWS=attend.rows,
        DEPTH=attend.depth, GROUPS=min(attend.groups, attend.depth // 16),
        MADE=query_weight is not None, WIDTH=width, MADE_DEPTH=made_depth,
        MADE_GROUPS=min(attend.warps, made_depth // 16),
    )  # fmt: skip
    return launch_linear(
        mixed, weight, bias, residual=residual, logs=logs if splits > 1 else None, head_dim=width // heads,
        launch=project, programmatic=programmatic,
    )  # fmt: skip
