"""Random arguments of every kernel, small or of the sizes that are served."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Arguments = tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes of one adapter and one call."""

    batch: int = 1
    vlm_tokens: int = 20
    dino_tokens: int = 9
    vlm_dim: int = 48
    dino_dim: int = 32
    heads: int = 2
    head_dim: int = 32
    queries: int = 19
    ff_dim: int = 80
    output_dim: int = 72

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


FULL = Sizes(
    vlm_tokens=384,
    dino_tokens=256,
    vlm_dim=3584,
    dino_dim=1024,
    heads=7,
    head_dim=64,
    queries=77,
    ff_dim=1792,
    output_dim=4096,
)


class Make:
    """Makes arguments on one device and in one dtype from a seed."""

    def __init__(self, sizes: Sizes, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> None:
        self.sizes, self.dtype, self.device = sizes, dtype, device
        self._generator = torch.Generator().manual_seed(seed)

    def random(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        values = torch.randn(*shape, generator=self._generator) * scale
        return values.to(self.device, self.dtype if dtype is None else dtype)

    def weight(self, rows: int, columns: int) -> Tensor:
        return self.random(rows, columns, scale=columns**-0.5)

    def vector(self, *shape: int) -> Tensor:
        return self.random(*shape, dtype=torch.float32)

    def lengths(self) -> Tensor:
        """The first row is full, every later one shorter, down to none."""
        tokens, batch = self.sizes.vlm_tokens, self.sizes.batch
        values = [tokens - tokens * row // max(1, batch - 1) for row in range(batch)]
        return torch.tensor(values, dtype=torch.int32, device=self.device)

    def context(self) -> Arguments:
        """Arguments of `encode_context`; what lies behind the true lengths is NaN."""
        s, lengths = self.sizes, self.lengths()
        vlm = self.random(s.batch, s.vlm_tokens, s.vlm_dim) + 0.5
        vlm[torch.arange(s.vlm_tokens, device=self.device) >= lengths[:, None]] = torch.nan
        dino = self.random(s.batch, s.dino_tokens, s.dino_dim, scale=3.0)
        weights = self.weight(s.width, s.vlm_dim), self.weight(s.width, s.dino_dim)
        sums = (weight.float().sum(1) for weight in weights)
        return vlm, dino, *weights, *sums, self.vector(s.dino_tokens + s.vlm_tokens, s.width), lengths

    def product(self) -> Arguments:
        s = self.sizes
        rows, columns = s.batch * (s.vlm_tokens + s.dino_tokens), 4 * s.width
        return self.random(rows, s.width), self.weight(columns, s.width), self.vector(columns)

    def linear(self, kind: str) -> Arguments:
        """Arguments of `fused_linear`: "up" has a norm and a GELU, "down" a residual, "out" a norm."""
        s = self.sizes
        dims = {"up": (s.width, s.ff_dim), "down": (s.ff_dim, s.width), "out": (s.width, s.output_dim)}[kind]
        weight = self.weight(dims[1], dims[0])
        sums = None if kind == "down" else weight.float().sum(1)
        residual = self.vector(s.queries, dims[1]) if kind == "down" else None
        x = self.random(s.batch * s.queries, dims[0]) + 0.3
        return x, weight, self.vector(dims[1]), sums, residual, kind == "up"

    def attend(self, kind: str) -> Arguments:
        """Arguments of `attend`: "first" has one query for all rows, "cross" one each, "self" no context."""
        s, lengths = self.sizes, self.lengths()
        rest = self.weight(s.width, s.width), self.vector(s.width), self.vector(s.queries, s.width), lengths
        if kind == "self":
            qkv = self.random(s.batch, s.queries, 3 * s.width)
            return qkv, qkv, *rest, s.heads, 0, s.width, 2 * s.width, s.queries
        keys_values = self.random(s.batch, s.dino_tokens + s.vlm_tokens, 4 * s.width)
        query = self.random(1 if kind == "first" else s.batch, s.queries, s.width)
        return query, keys_values, *rest, s.heads, 0, 2 * s.width, 3 * s.width, s.dino_tokens
