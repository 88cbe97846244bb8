# Triton is untyped, and its compile-time constants are named in capitals.
# mypy: disable-error-code="import-untyped,untyped-decorator,no-untyped-def,no-untyped-call"
# ruff: noqa: N803
"""The kernel for attention: scores, softmax and values in one pass, split over heads, queries and keys.

Blocks of 16 queries give every multiprocessor work; how many warps share one, and how many keys a step takes, was
measured. Parts of a split context are merged where the output projection reads them.
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

__all__ = ["launch_attend"]

_LOG2_E = 1.4426950408889634


@triton.jit
def _attend_kernel(
    query, keys_values, lengths, output, logs,
    queries, keys, query_step, split_keys, scale, always, rows_total,
    QUERY_WIDTH: tl.constexpr, KEY_WIDTH: tl.constexpr, QUERY_AT: tl.constexpr,
    KEY_AT: tl.constexpr, VALUE_AT: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr,
    SPLITS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, PROGRAMMATIC: tl.constexpr,
):  # fmt: skip
    if PROGRAMMATIC == 1:
        gdc_launch_dependents()
    row, head = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    split = tl.program_id(2)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, HEAD)
    places = tl.arange(0, DEPTH)
    inside = rows < queries
    count = tl.minimum(always + tl.load(lengths + row), keys)
    first = split * split_keys
    last = tl.minimum(first + split_keys, count)
    if PROGRAMMATIC > 0:
        gdc_wait()
    if PROGRAMMATIC == 2:
        gdc_launch_dependents()
    q = tl.load(
        query + (row * query_step + rows)[:, None] * QUERY_WIDTH + QUERY_AT + head * HEAD + dims[None, :],
        mask=inside[:, None], other=0.0,
    )  # fmt: skip
    base = keys_values + row * keys * KEY_WIDTH + head * HEAD
    largest = tl.full((ROWS,), -1.0e30, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, HEAD), tl.float32)
    for step in range(first, last, DEPTH):
        here = step + places
        valid = here < last
        k = tl.load(base + KEY_AT + here[None, :] * KEY_WIDTH + dims[:, None], mask=valid[None, :], other=0.0)
        v = tl.load(
            base + VALUE_AT + here[:, None] * KEY_WIDTH + dims[None, :], mask=valid[:, None], other=0.0
        )
        # A compiler that traces the launch passes floats in fp64, and all that they touch would follow.
        scores = tl.dot(q, k, input_precision="ieee") * tl.cast(scale, tl.float32)
        scores = tl.where(valid[None, :], scores, -1.0e30)
        higher = tl.maximum(largest, tl.max(scores, axis=1))
        shares = tl.where(valid[None, :], tl.exp2(scores - higher[:, None]), 0.0)
        shrink = tl.exp2(largest - higher)
        total = total * shrink + tl.sum(shares, axis=1)
        mixed = tl.dot(shares.to(v.dtype), v, mixed * shrink[:, None], input_precision="ieee")
        largest = higher
    # A part of the context that the true length leaves empty counts for nothing.
    empty = total == 0.0
    mixed = mixed / tl.where(empty, 1.0, total)[:, None]
    target = row * queries + rows
    if SPLITS > 1:
        log = tl.where(empty, -1.0e30, largest + tl.log2(tl.where(empty, 1.0, total)))
        tl.store(logs + (split * rows_total + target) * HEADS + head, log, mask=inside)
    place = (split * rows_total + target)[:, None] * (HEADS * HEAD) + head * HEAD + dims[None, :]
    tl.store(output + place, mixed.to(output.dtype.element_ty), mask=inside[:, None])


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
    mixed = torch.empty((splits, batch * queries, width), dtype=query.dtype, device=query.device)
    logs = torch.empty((splits, batch * queries, heads), dtype=torch.float32, device=query.device)
    start(
        _attend_kernel, (triton.cdiv(queries, attend.rows), batch * heads, splits), attend, programmatic,
        query, keys_values, lengths, mixed, logs, queries, keys, queries if query.shape[0] > 1 else 0,
        split_keys, _LOG2_E * (width // heads) ** -0.5, always, batch * queries,
        QUERY_WIDTH=query_width, KEY_WIDTH=key_width, QUERY_AT=query_column, KEY_AT=key_column,
        VALUE_AT=value_column, HEADS=heads, HEAD=width // heads, SPLITS=splits, ROWS=attend.rows,
        DEPTH=attend.depth,
    )  # fmt: skip
    return launch_linear(
        mixed, weight, bias, residual=residual, logs=logs if splits > 1 else None, head_dim=width // heads,
        launch=project, programmatic=programmatic,
    )  # fmt: skip
