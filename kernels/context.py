# Triton is untyped, and its compile-time constants are named in capitals.
# mypy: disable-error-code="import-untyped,untyped-decorator,no-untyped-def,no-untyped-call"
# ruff: noqa: N803
"""Kernels for the context: both encoders' tokens projected in one launch, finished in a second.

The first launch multiplies the raw tokens, split over the long contracted axis so that all multiprocessors
have work; the second adds the parts, applies the norms' statistics, which it takes while it waits, and the
table of biases and positions. A norm and a product commute but for a rank-one term: LN(x) W = rstd (x W -
mean sum(W)).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from foresight.kernels.launch import Launch
from foresight.kernels.launcher import padded, start
from foresight.kernels.reference import EPS

__all__ = ["launch_context"]


@triton.jit
def _project_tile(
    x, weight, lengths, partial, tile, batch, tokens, offset, total,
    DIM: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr, SPLIT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    column_tiles: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    row_tiles = tl.cdiv(batch * tokens, ROWS)
    split = tile // (column_tiles * row_tiles)
    rest = tile % (column_tiles * row_tiles)
    rows = (rest // column_tiles) * ROWS + tl.arange(0, ROWS)
    columns = (rest % column_tiles) * COLUMNS + tl.arange(0, COLUMNS)
    inside = rows < batch * tokens
    row, place = rows // tokens, rows % tokens
    keep = inside
    if MASKED:
        keep = inside & (place < tl.load(lengths + row, mask=inside, other=0))
    depths = split * SPLIT + tl.arange(0, DEPTH)
    output = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in range(0, SPLIT, DEPTH):
        here = depths + step
        a = tl.load(
            x + rows[:, None] * DIM + here[None, :], mask=keep[:, None] & (here < DIM)[None, :], other=0.0
        )
        w = tl.load(
            weight + columns[None, :] * DIM + here[:, None],
            mask=(columns < WIDTH)[None, :] & (here < DIM)[:, None], other=0.0,
        )  # fmt: skip
        output = tl.dot(a, w, output, input_precision="ieee")
    target = (split * batch + row) * total + offset + place
    tl.store(
        partial + target[:, None] * WIDTH + columns[None, :], output,
        mask=inside[:, None] & (columns < WIDTH)[None, :],
    )  # fmt: skip


@triton.jit
def _project_kernel(
    vlm, dino, vlm_weight, dino_weight, lengths, partial, batch, vlm_tokens, dino_tokens, vlm_tiles,
    VLM_DIM: tl.constexpr, DINO_DIM: tl.constexpr, WIDTH: tl.constexpr, SPLIT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PROGRAMMATIC: tl.constexpr,
):  # fmt: skip
    if PROGRAMMATIC > 0:
        gdc_launch_dependents()
    tile = tl.program_id(0)
    total = vlm_tokens + dino_tokens
    if tile < vlm_tiles:
        _project_tile(
            vlm, vlm_weight, lengths, partial, tile, batch, vlm_tokens, dino_tokens, total,
            VLM_DIM, WIDTH, True, SPLIT, ROWS, COLUMNS, DEPTH,
        )  # fmt: skip
    else:
        _project_tile(
            dino, dino_weight, lengths, partial, tile - vlm_tiles, batch, dino_tokens, 0, total,
            DINO_DIM, WIDTH, False, SPLIT, ROWS, COLUMNS, DEPTH,
        )  # fmt: skip


@triton.jit
def _finish_rows(
    x, sums, table, lengths, partial, context, tile, batch, tokens, offset, total, eps,
    DIM: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr, SPLITS: tl.constexpr,
    ROWS: tl.constexpr, DIM_PADDED: tl.constexpr, WIDTH_PADDED: tl.constexpr, PROGRAMMATIC: tl.constexpr,
):  # fmt: skip
    rows = tile * ROWS + tl.arange(0, ROWS)
    inside = rows < batch * tokens
    row, place = rows // tokens, rows % tokens
    keep = inside
    if MASKED:
        keep = inside & (place < tl.load(lengths + row, mask=inside, other=0))
    depths = tl.arange(0, DIM_PADDED)
    valid = keep[:, None] & (depths < DIM)[None, :]
    values = tl.load(x + rows[:, None] * DIM + depths[None, :], mask=valid, other=0.0).to(tl.float32)
    mean = tl.sum(values, axis=1) / DIM
    centred = tl.where(valid, values - mean[:, None], 0.0)
    # In fp64 where a compiler traces the launch.
    rstd = tl.rsqrt(tl.sum(centred * centred, axis=1) / DIM + tl.cast(eps, tl.float32))
    columns = tl.arange(0, WIDTH_PADDED)
    used = columns < WIDTH
    column_sums = tl.load(sums + columns, mask=used, other=0.0)
    filled = inside[:, None] & used[None, :]
    places = tl.load(table + (offset + place)[:, None] * WIDTH + columns[None, :], mask=filled, other=0.0)
    if PROGRAMMATIC > 0:
        gdc_wait()
    if PROGRAMMATIC == 2:
        gdc_launch_dependents()
    target = row * total + offset + place
    output = tl.zeros((ROWS, WIDTH_PADDED), tl.float32)
    for split in tl.static_range(SPLITS):
        source = split * batch * total + target
        output += tl.load(partial + source[:, None] * WIDTH + columns[None, :], mask=filled, other=0.0)
    output = rstd[:, None] * (output - mean[:, None] * column_sums[None, :]) + places
    tl.store(
        context + target[:, None] * WIDTH + columns[None, :], output.to(context.dtype.element_ty), mask=filled
    )


@triton.jit
def _finish_kernel(
    vlm, dino, vlm_sums, dino_sums, table, lengths, partial, context,
    batch, vlm_tokens, dino_tokens, vlm_tiles, eps,
    VLM_DIM: tl.constexpr, DINO_DIM: tl.constexpr, WIDTH: tl.constexpr,
    VLM_SPLITS: tl.constexpr, DINO_SPLITS: tl.constexpr, ROWS: tl.constexpr,
    VLM_PADDED: tl.constexpr, DINO_PADDED: tl.constexpr, WIDTH_PADDED: tl.constexpr,
    PROGRAMMATIC: tl.constexpr,
):  # fmt: skip
    if PROGRAMMATIC == 1:
        gdc_launch_dependents()
    tile = tl.program_id(0)
    total = vlm_tokens + dino_tokens
    if tile < vlm_tiles:
        _finish_rows(
            vlm, vlm_sums, table, lengths, partial, context, tile, batch, vlm_tokens, dino_tokens, total, eps,
            VLM_DIM, WIDTH, True, VLM_SPLITS, ROWS, VLM_PADDED, WIDTH_PADDED, PROGRAMMATIC,
        )  # fmt: skip
    else:
        _finish_rows(
            dino, dino_sums, table, lengths, partial, context, tile - vlm_tiles, batch, dino_tokens, 0, total, eps,
            DINO_DIM, WIDTH, False, DINO_SPLITS, ROWS, DINO_PADDED, WIDTH_PADDED, PROGRAMMATIC,
        )  # fmt: skip


def launch_context(
    vlm: Tensor,
    dino: Tensor,
    vlm_weight: Tensor,
    dino_weight: Tensor,
    vlm_sums: Tensor,
    dino_sums: Tensor,
    table: Tensor,
    lengths: Tensor,
    *,
    project: Launch,
    finish: Launch,
    programmatic: int,
) -> Tensor:
    """Launch both kernels; arguments and result are those of `reference.encode_context`."""
    batch, vlm_tokens, vlm_dim = vlm.shape
    dino_tokens, dino_dim = dino.shape[1:]
    width = vlm_weight.shape[0]
    # Both streams are cut into parts of one length, so that no block has more to do than another.
    split = triton.cdiv(triton.cdiv(vlm_dim, project.splits), project.depth) * project.depth
    vlm_splits, dino_splits = triton.cdiv(vlm_dim, split), triton.cdiv(dino_dim, split)
    column_tiles = triton.cdiv(width, project.columns)
    vlm_tiles = triton.cdiv(batch * vlm_tokens, project.rows) * column_tiles * vlm_splits
    dino_tiles = triton.cdiv(batch * dino_tokens, project.rows) * column_tiles * dino_splits
    total = vlm_tokens + dino_tokens
    partial = torch.empty(
        (max(vlm_splits, dino_splits), batch, total, width), dtype=torch.float32, device=vlm.device
    )
    start(
        _project_kernel, (vlm_tiles + dino_tiles, 1, 1), project, programmatic,
        vlm, dino, vlm_weight, dino_weight, lengths, partial, batch, vlm_tokens, dino_tokens, vlm_tiles,
        VLM_DIM=vlm_dim, DINO_DIM=dino_dim, WIDTH=width, SPLIT=split,
        ROWS=project.rows, COLUMNS=project.columns, DEPTH=project.depth, waits=False,
    )  # fmt: skip
    context = torch.empty((batch, total, width), dtype=vlm.dtype, device=vlm.device)
    vlm_tiles = triton.cdiv(batch * vlm_tokens, finish.rows)
    dino_tiles = triton.cdiv(batch * dino_tokens, finish.rows)
    start(
        _finish_kernel, (vlm_tiles + dino_tiles, 1, 1), finish, programmatic,
        vlm, dino, vlm_sums, dino_sums, table, lengths, partial, context,
        batch, vlm_tokens, dino_tokens, vlm_tiles, EPS,
        VLM_DIM=vlm_dim, DINO_DIM=dino_dim, WIDTH=width, VLM_SPLITS=vlm_splits, DINO_SPLITS=dino_splits,
        ROWS=finish.rows, VLM_PADDED=padded(vlm_dim), DINO_PADDED=padded(dino_dim), WIDTH_PADDED=padded(width),
    )  # fmt: skip
    return context
