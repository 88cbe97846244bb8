"""What the persistent kernel for adapters whose weights do not fit the blocks is compiled for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch

from foresight.kernels.persistent_shape import PersistentShape, divide_up

__all__ = ["Share", "WideShape"]

_TILE = 128
_STAGES = 5
# Keys and values: products side by side that a block makes, columns of one, and stages.
_KEY_VALUE_PARTS = 2
_KEY_VALUE_WIDTH = 192
_KEY_VALUE_STAGES = 3
# A thread holds its part of 16 rows in registers; two steps of keys and values at least.
_HIDDEN = range(128, 1152 + 1)
_WIDE_PASS = 4
_MOST_SLOTS = 10
# What only the other kernel is told.
_OTHER_DEFINES = ("OUT_PASSES", "KV_COLUMNS", "ROOM")
# Of a block's shared memory, what the chain may use: without a kilobyte that stays free.
_ROOM = 232_448 - 1024

Share = tuple[int, int]
"""The first of a block's units of 8 columns of a product, and the one behind its last."""


@dataclass(frozen=True, kw_only=True)
class WideShape(PersistentShape):
    """As `PersistentShape`, for the kernel through whose blocks the chain's weights pass; see wide_layout.cuh."""

    def refusal(self, shared_memory: int) -> str | None:
        """Why the kernel cannot serve this shape with so many bytes of shared memory a block; None if it can."""
        general = self._general_refusal()
        if general is not None:
            return general
        if self.hidden_dim not in _HIDDEN:
            return f"width of {self.hidden_dim}: must be from {_HIDDEN[0]} to {_HIDDEN[-1]}"
        # The ring holds a pass of units at least.
        few = self.groups < max(self.num_heads, self.ff_slices)
        if few or self.slots < max(self._narrow, _WIDE_PASS + 1):
            return f"{self.num_queries} queries of {self.hidden_dim}: too much for {self.blocks} blocks"
        if self.shared_bytes > shared_memory:
            return f"{self.shared_bytes} bytes of shared memory: the device has {shared_memory} a block"
        return None

    @property
    def sources(self) -> tuple[str, ...]:
        chain = (
            "rows.cuh",
            "wide_attention.cuh",
            "wide_stream.cuh",
            "clearing.cuh",
            "wide_chain.cuh",
            "wide_adapter.cu",
        )
        return (
            "sizes.cuh",
            "parameters.cuh",
            "wide_layout.cuh",
            "places.cuh",
            "projection.cuh",
            "wide_keys_values.cuh",
            *chain,
        )

    @property
    def warpgroup_products(self) -> list[tuple[int, bool]]:
        return [(columns, False) for columns in sorted({self.columns, _KEY_VALUE_WIDTH})]

    @cached_property
    def out_passes(self) -> int:
        return 1

    @property
    def _narrow(self) -> int:
        return divide_up(self.hidden_dim // 8, self.groups)

    @cached_property
    def ff_slices(self) -> int:
        """Slices of the feed-forward, none wider than the rest, that blocks contract by themselves."""
        blocks, most = self.ff_dim // 32, self.hidden_dim // 32
        return next(n for n in range(1, blocks + 1) if blocks % n == 0 and blocks // n <= most)

    @cached_property
    def unit_elements(self) -> int:
        """Elements of a unit of 8 columns, in memory and in the ring."""
        return 8 * max(self.hidden_dim, self.ff_dim // self.ff_slices)

    def shares(self, width: int, *, sliced: bool = False) -> list[Share]:
        """What each block of the same rows has of a product of so many columns.

        The units of a `sliced` product are those of all slices, one slice after the other.
        """
        units, slices = width // 8, self.ff_slices if sliced else 1
        each = self.groups // slices
        bounds = [s * units + i * units // each for s in range(slices) for i in range(each)]
        bounds += [slices * units] * (self.groups + 1 - len(bounds))
        return list(pairwise(bounds))

    @cached_property
    def _widest(self) -> int:
        widths = (3 * self.hidden_dim, self.ff_dim, self.output_dim)
        sliced = divide_up(self.hidden_dim // 8, self.groups // self.ff_slices)
        return max(*(divide_up(width // 8, self.groups) for width in widths), sliced)

    @cached_property
    def _behind_ring(self) -> int:
        # Lines of a narrow pass, of two wide ones, and of an attention.
        lines = (8 * self._narrow + 8, 2 * (8 * _WIDE_PASS + 4), 72)
        slices = 8 * 16 * max(lines) * 4
        return slices + 16 * 64 * 2 + 2 * (2 * self._widest * 8 * 4) + 2 * 9 * 16 * 8

    @cached_property
    def slots(self) -> int:
        """Units of weights that the ring holds."""
        arrivals = (_MOST_SLOTS + 2 * _KEY_VALUE_STAGES) * 8
        return min(_MOST_SLOTS, (_ROOM - self._behind_ring - arrivals) // (2 * self.unit_elements))

    @cached_property
    def shared_bytes(self) -> int:
        chain = self.slots * 2 * self.unit_elements + self._behind_ring
        keys_values = _KEY_VALUE_STAGES * (_TILE + self.key_value_columns) * 128
        arrivals = (self.slots + 2 * _KEY_VALUE_STAGES) * 8
        return max(chain, keys_values, _STAGES * (_TILE + self.columns) * 128) + arrivals

    @property
    def key_value_columns(self) -> int:
        return _KEY_VALUE_PARTS * _KEY_VALUE_WIDTH

    @cached_property
    def exchange_elements(self) -> int:
        h = self.hidden_dim
        to_attention = self.rows * 5 * h + divide_up(self.rows, 32) * 32 * h
        # The first layer's query is a constant.
        return self.num_layers * (to_attention + self.rows * (3 * h + self.ff_dim)) - to_attention

    @cached_property
    def part_elements(self) -> int:
        """Elements of the fp32 sums of the slices of the feed-forward, of all layers."""
        return self.num_layers * 2 * self.ff_slices * self.rows * self.hidden_dim

    def buffer_elements(self, vlm_tokens: int, dino_tokens: int) -> int:
        h, total = self.hidden_dim, vlm_tokens + dino_tokens
        parts = self.teams + sum(divide_up(tokens, _TILE) for tokens in (vlm_tokens, dino_tokens))
        words = 2 if self.dtype == torch.float16 else 1
        once = self.part_elements + parts * _TILE * h * words
        # The context in whole tiles; keys and values.
        once += divide_up(total, _TILE) * _TILE * h + 2 * self.num_layers * divide_up(total, 32) * 32 * h
        return once + 2 * (self.exchange_elements + parts * 64 * 8)

    def defines(self) -> dict[str, int]:
        return {name: value for name, value in super().defines().items() if name not in _OTHER_DEFINES} | {
            "SLOTS": self.slots,
            "FF_SLICES": self.ff_slices,
            "KV_PARTS": _KEY_VALUE_PARTS,
            "KV_WIDTH": _KEY_VALUE_WIDTH,
            "KV_STAGES": _KEY_VALUE_STAGES,
            "EXPECTED_SHARED_BYTES": self.shared_bytes,
            "EXPECTED_EXCHANGE": self.exchange_elements,
            "EXPECTED_PARTS": self.part_elements,
        }
