"""The launches that are worth measuring for each kernel, for whoever writes a table of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product as combinations

from foresight.kernels.launch import Launch

__all__ = ["launch_candidates"]


def launch_candidates(kernel: str, shape: Sequence[int]) -> list[Launch]:
    """Launches of `kernel` to try for `shape` (see `foresight.kernels.launch.KERNELS`)."""
    return _CANDIDATES[kernel](shape)


def _project(shape: Sequence[int]) -> list[Launch]:
    tiles = [
        (64, 64, 4, 4),
        (128, 64, 4, 3),
        (128, 64, 4, 4),
        (64, 128, 4, 3),
        (128, 128, 8, 3),
        (128, 128, 8, 4),
    ]
    splits = (1, 2, 4, 7) if shape[0] < 1000 else (1, 2, 4)
    return [
        Launch(rows=rows, columns=columns, depth=64, splits=parts, warps=warps, stages=stages)
        for (rows, columns, warps, stages), parts in combinations(tiles, splits)
    ]


def _finish(shape: Sequence[int]) -> list[Launch]:  # noqa: ARG001
    sizes = ((1, 4), (2, 4), (2, 8), (4, 8), (4, 16), (8, 16))
    return [Launch(rows=rows, warps=warps, stages=1) for rows, warps in sizes]


def _product(shape: Sequence[int]) -> list[Launch]:  # noqa: ARG001
    tiles = [(64, 64, 4), (64, 128, 4), (128, 64, 4), (128, 128, 8), (128, 128, 4), (64, 256, 8)]
    return [
        Launch(rows=rows, columns=columns, depth=64, warps=warps, stages=stages)
        for (rows, columns, warps), stages in combinations(tiles, (3, 4))
    ]


def _linear(shape: Sequence[int]) -> list[Launch]:
    rows_total, dim, width = shape
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
    found = [
        Launch(rows=rows, columns=columns, depth=depth, warps=warps, stages=stages)
        for (rows, columns, warps), (depth, stages) in combinations(tiles, ((64, 5), (128, 3), (128, 5)))
    ]
    # All of the contracted axis in one step, where a thread can hold its share.
    whole = 1 << (dim - 1).bit_length()
    found += [
        Launch(rows=rows, columns=columns, depth=whole, warps=warps, stages=1)
        for rows, columns, warps in combinations((16, 32), (16, 32, 64), (4, 8))
        if whole * (rows + columns) <= min(192 * 32 * warps, 100_000)
    ]
    return [each for each in found if -(-rows_total // each.rows) * -(-width // each.columns) <= 600]


def _attend(shape: Sequence[int]) -> list[Launch]:
    queries, heads, keys, batch = shape
    tiles = [(16, 1), (16, 2), (16, 4), (32, 2), (64, 4)]
    return [
        Launch(rows=rows, depth=depth, splits=splits, warps=warps, stages=3)
        for (rows, warps), depth, splits in combinations(tiles, (32, 64, 128), (1, 2, 3, 5, 8))
        if depth * (splits - 1) < keys
        and (depth < 128 or warps > 1)
        and -(-queries // rows) * heads * batch * splits <= 600
    ]


_CANDIDATES = {
    "project": _project,
    "finish": _finish,
    "product": _product,
    "linear": _linear,
    "attend": _attend,
}
