"""How weights lie in memory for the persistent kernel."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["biases_and_sums", "dealt", "fragments", "placed", "side_by_side", "sliced_fragments", "swizzled"]


def fragments(weight: Tensor) -> Tensor:
    """A weight [N, K] as the chain reads it, [N / 8, K / 32, 32, 8]: by unit of rows, block of columns and lane.

    A lane has four columns of either half of a block, see `placed_input` in places.cuh.
    """
    units, blocks = weight.shape[0] // 8, weight.shape[1] // 32
    lanes = weight.reshape(units, 8, blocks, 2, 4, 4).permute(0, 2, 1, 4, 3, 5)
    return lanes.reshape(units, blocks, 32, 8)


def dealt(weight: Tensor, blocks: int) -> Tensor:
    """Of fragments [units, ...] what each of `blocks` has, or one unit more: [blocks, most that one has, ...]."""
    units = weight.shape[0]
    first = torch.arange(blocks, device=weight.device) * units // blocks
    return weight[first[:, None] + torch.arange(-(-units // blocks), device=weight.device)]


def sliced_fragments(weight: Tensor, slices: int) -> Tensor:
    """A weight [N, K] as blocks read it that hold an equal slice of its input, [slices, places / 16, N / 16, 32, 8].

    A lane has rows r and r + 8 of sixteen, four places of either; see `scatter` in chain.cuh.
    """
    n, places = weight.shape[0], weight.shape[1] // slices
    lanes = weight.reshape(n // 16, 2, 8, slices, places // 16, 4, 2, 2)
    return lanes.permute(3, 4, 0, 2, 5, 6, 1, 7).reshape(slices, places // 16, n // 16, 32, 8)


def side_by_side(weight: Tensor) -> Tensor:
    """A weight [N, K] with every 16 of its rows in the order of `side_by_side` of places.cuh."""
    n, k = weight.shape
    return weight.reshape(n // 16, 4, 2, 2, k).transpose(1, 2).reshape(n, k)


def swizzled(weight: Tensor, columns: int) -> Tensor:
    """A weight [N, K] as shared memory holds it, [N / columns, K / 64, columns, 64], zeros behind rows and columns.

    Of a row's eight chunks of 16 bytes, chunk i of row r lies where i ^ (r % 8) would; see `staged` in projection.cuh.
    """
    steps = -(-weight.shape[1] // 64)
    padded = torch.nn.functional.pad(weight, (0, -weight.shape[1] % 64, 0, -weight.shape[0] % columns))
    chunks = padded.reshape(-1, columns, steps, 8, 8).transpose(1, 2)
    order = torch.arange(8, device=weight.device) ^ (torch.arange(columns, device=weight.device) % 8)[:, None]
    return chunks.gather(3, order[None, None, :, :, None].expand_as(chunks)).contiguous()


def placed(rows: Tensor) -> Tensor:
    """Rows [N, K] as blocks exchange them, [N / 16, K / 32, 16, 32]; see `placed` in places.cuh."""
    n, k = rows.shape
    return rows.reshape(n // 16, 16, k // 32, 32).transpose(1, 2).contiguous()


def biases_and_sums(bias: Tensor, sums: Tensor | None) -> Tensor:
    """Biases [N], and what a norm takes from its columns [N]: [2 N]."""
    return torch.cat([bias, torch.zeros_like(bias) if sums is None else sums])
