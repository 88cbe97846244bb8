"""The launches that are worth measuring for each kernel, for whoever writes a table of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product as combinations

from foresight.kernels.launch import Launch

__all__ = ["launch_candidates"]

# From this width on an adapter's weights, not its steps, decide: blocks must read little, so that tiles are large.
_WIDE = 1024


def launch_candidates(kernel: str, shape: Sequence[int]) -> list[Launch]:
    """Launches of `kernel` to try for `shape` (see `foresight.kernels.launch.KERNELS`)."""
    return _CANDIDATES[kernel](shape)


def _project(shape: Sequence[int]) -> list[Launch]:
    if shape[-1] >= _WIDE:
        tiles = [(128, 64, 4, 4), (128, 128, 8, 3), (128, 128, 4, 3), (128, 256, 8, 3)]
        splits: tuple[int, ...] = (1, 2, 3, 4, 5, 7)
    else:
        tiles = [(64, 64, 4, 4), (128, 64, 4, 3), (128, 64, 4, 4), (64, 128, 4, 3), (128, 128, 8, 3)]
        splits = (1, 2, 4, 7) if shape[0] < 1000 else (1, 2, 4)
    return [
        Launch(rows=rows, columns=columns, depth=64, splits=parts, warps=warps, stages=stages)
        for (rows, columns, warps, stages), parts in combinations(tiles, splits)
    ]


def _finish(shape: Sequence[int]) -> list[Launch]:  # noqa: ARG001
    sizes = ((1, 4), (1, 8), (2, 4), (2, 8), (4, 8), (4, 16), (8, 16))
    return [Launch(rows=rows, warps=warps, stages=1) for rows, warps in sizes]


def _product(shape: Sequence[int]) -> list[Launch]:
    tiles = [(64, 256, 8), (128, 128, 8), (128, 128, 4)]
    if shape[1] >= _WIDE:
        tiles += [(128, 256, 8), (256, 128, 8)]
    else:
        tiles += [(64, 64, 4), (64, 128, 4), (128, 64, 4)]
    return [
        Launch(rows=rows, columns=columns, depth=64, warps=warps, stages=stages)
        for (rows, columns, warps), stages in combinations(tiles, (3, 4))
    ]


def _linear(shape: Sequence[int]) -> list[Launch]:
    rows_total, dim, width = shape
    splits: tuple[int, ...] = (1,)
    fewest = 48
    steps: tuple[tuple[int, int], ...] = ((64, 4), (64, 6), (128, 3))
    if min(dim, width) < _WIDE:
        tiles = [
            (16, 16, 2),
            (16, 32, 2),
            (16, 32, 4),
            (16, 64, 4),
            (32, 32, 4),
            (32, 64, 4),
            (64, 32, 4),
            (64, 64, 4),
        ]
        steps, fewest = ((64, 5), (128, 3), (128, 5)), 1
    elif dim > 2 * width:
        # Many parts of a long axis; a block is one of all rows.
        tiles = [(64, 64, 4), (64, 128, 8), (128, 64, 4), (128, 64, 8), (128, 128, 8)]
        splits, steps = (3, 4, 6, 8, 9, 12), ((64, 4),)
    else:
        tiles = [
            (16, 64, 4),
            (32, 32, 4),
            (32, 64, 4),
            (64, 32, 4),
            (64, 64, 4),
            (64, 64, 8),
            (128, 32, 8),
            (128, 64, 8),
        ]
    found = [
        Launch(rows=rows, columns=columns, depth=depth, splits=parts, warps=warps, stages=stages)
        for (rows, columns, warps), (depth, stages), parts in combinations(tiles, steps, splits)
        # Steps that a thread cannot hold for its share of a norm are left out.
        if rows * depth < 128 * 128
    ]
    blocks = [-(-rows_total // x.rows) * -(-width // x.columns) * x.splits for x in found]
    return [launch for launch, count in zip(found, blocks, strict=True) if fewest <= count <= 600]


def _attend(shape: Sequence[int]) -> list[Launch]:
    queries, heads, keys, batch = shape
    tiles = [(16, 1), (16, 2), (16, 4), (32, 2), (64, 4)]
    splits: tuple[int, ...] = (1, 2, 3, 5, 8)
    if heads >= 16:
        # Heads and queries alone give the multiprocessors enough to do.
        tiles, splits = [(16, 2), (16, 4), (32, 4), (64, 4)], (1, 2)
    return [
        Launch(rows=rows, depth=depth, splits=parts, warps=warps, stages=3)
        for (rows, warps), depth, parts in combinations(tiles, (32, 64, 128), splits)
        if depth * (parts - 1) < keys
        and (depth < 128 or warps > 1)
        and -(-queries // rows) * heads * batch * parts <= 600
    ]


_CANDIDATES = {
    "project": _project,
    "finish": _finish,
    "product": _product,
    "linear": _linear,
    "attend": _attend,
}
