"""The chain's weights as the blocks of the wide persistent kernel read them: a stream for each share of the columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from foresight.kernels.arrangement import fragments
from foresight.kernels.wide_shape import WIDE, WideShape

__all__ = ["dealt_streams"]


def dealt_streams(weights: Sequence[tuple[str, Tensor]], shape: WideShape) -> Tensor:
    """The weights [N, K] of all products, in the order of the chain, as units [all units, unit_elements].

    Those of the wide products first, then the others: all units of the first share in the order of the products, then
    those of the second, and so on; see wide_stream.cuh. A unit is 8 rows, as `fragments` has them.
    """
    return torch.cat([unit for wide in (True, False) for unit in _streams(weights, shape, wide)])


def _streams(weights: Sequence[tuple[str, Tensor]], shape: WideShape, wide: bool) -> Iterator[Tensor]:
    chosen = [(name, weight) for name, weight in weights if (name in WIDE) == wide]
    units = [
        _units(weight, shape.ff_slices if name == "down" else 1, shape.unit_elements)
        for name, weight in chosen
    ]
    for share in zip(*(shape.shares(name) for name, _ in chosen), strict=True):
        for (first, last), unit in zip(share, units, strict=True):
            yield unit[first:last]


def _units(weight: Tensor, slices: int, elements: int) -> Tensor:
    """A weight [N, K] as units [slices N / 8, elements], zeros behind those that contract less."""
    parts = torch.cat([fragments(part) for part in weight.chunk(slices, dim=1)]).flatten(1)
    return pad(parts, (0, elements - parts.shape[1]))
