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
        Launch(rows=rows, columns=columns, depth=64, groups=1, splits=parts, warps=warps, stages=stages)
        for (rows, columns, warps, stages), parts in combinations(tiles, splits)
    ]


def _finish(shape: Sequence[int]) -> list[Launch]:  # noqa: ARG001
    sizes = ((1, 4), (2, 4), (2, 8), (4, 8), (4, 16), (8, 16))
    return [Launch(rows=rows, groups=1, warps=warps, stages=1) for rows, warps in sizes]


def _product(shape: Sequence[int]) -> list[Launch]:  # noqa: ARG001
    tiles = [(64, 64, 4), (64, 128, 4), (128, 64, 4), (128, 128, 8), (128, 128, 4), (64, 256, 8)]
    return [
        Launch(rows=rows, columns=columns, depth=64, groups=1, warps=warps, stages=stages)
        for (rows, columns, warps), stages in combinations(tiles, (3, 4))
    ]


def _linear(shape: Sequence[int]) -> list[Launch]:
    depths = [depth for depth in (512, 1024, 2048) if depth < 2 * shape[1]]
    found = []
    for rows, columns, depth, warps in combinations((16, 32, 64), (16, 32, 64, 128), depths, (4, 8)):
        # What one thread holds: weights and input of a step and the sums of its group of warps.
        held = depth * (rows + columns) / (2 * 32 * warps) + rows * columns / 32
        blocks = -(-shape[0] // rows) * -(-shape[2] // columns)
        if held <= 200 and 20 <= blocks <= 600:
            found.append(Launch(rows=rows, columns=columns, depth=depth, groups=warps, warps=warps, stages=1))
    return found


def _attend(shape: Sequence[int]) -> list[Launch]:
    queries, heads, keys, batch = shape
    found = []
    for rows, depth, splits, warps in combinations((16, 32), (64, 128, 256), (1, 2, 3, 4, 6), (4, 8)):
        blocks = -(-queries // rows) * heads * batch * splits
        if depth // warps >= 16 and depth * (splits - 1) < keys and blocks <= 600:
            found.append(Launch(rows=rows, depth=depth, groups=warps, splits=splits, warps=warps, stages=2))
    return found


_CANDIDATES = {
    "project": _project,
    "finish": _finish,
    "product": _product,
    "linear": _linear,
    "attend": _attend,
    "attend_made": _attend,
}
