"""The chain's weights as the blocks of the wide persistent kernel read them: a stream for each share of the columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from foresight.kernels.arrangement import fragments
from foresight.kernels.wide_shape import Share, WideShape

__all__ = ["dealt_streams"]


def dealt_streams(weights: Sequence[Tensor], shape: WideShape) -> Tensor:
    """The weights [N, K] of all products, in the order of the chain, as units [all units, unit_elements].

    First all units of the first share in the order of the products, then those of the second, and so on; see
    wide_stream.cuh. A unit is 8 rows, as `fragments` has them.
    """
    units, shares = list[Tensor](), list[list[Share]]()
    for weight in weights:
        # What contracts more than the rest does so in slices.
        sliced = weight.shape[1] != shape.hidden_dim
        units.append(_units(weight, shape.ff_slices if sliced else 1, shape.unit_elements))
        shares.append(shape.shares(weight.shape[0], sliced=sliced))

    def ordered() -> Iterator[Tensor]:
        for share in zip(*shares, strict=True):
            for (first, last), unit in zip(share, units, strict=True):
                yield unit[first:last]

    return torch.cat(list(ordered()))


def _units(weight: Tensor, slices: int, elements: int) -> Tensor:
    """A weight [N, K] as units [slices N / 8, elements], zeros behind those that contract less."""
    parts = torch.cat([fragments(part) for part in weight.chunk(slices, dim=1)]).flatten(1)
    return pad(parts, (0, elements - parts.shape[1]))
