"""What the persistent kernel for adapters whose weights do not fit the blocks is compiled for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch

from foresight.kernels.persistent_shape import PersistentShape, divide_up

__all__ = ["WIDE", "Share", "WideShape"]

_TILE = 128
_STAGES = 5
# Keys and values: products side by side that a block makes, columns of one, and stages.
_KEY_VALUE_PARTS = 2
_KEY_VALUE_WIDTH = 192
_KEY_VALUE_STAGES = 3
# A thread holds its part of 32 rows in registers; two steps of keys and values at least.
_HIDDEN = range(128, 1152 + 1)
_WIDE_PASS = 4
_MOST_SLOTS = 10
# A lane finds where the weights of a product lie.
_MOST_LAYERS = 5
# Of the context, whose units of keys and values have numbers of 16 bits, as those of weights.
_MOST_TOKENS = 4096
_MOST_NUMBERS = 1 << 16
# What a token has in a head, keys and values.
_KEY_BYTES = 2 * 64 * 2
# What only the other kernel is told.
_OTHER_DEFINES = ("KV_COLUMNS", "ROOM")
# Of a block's shared memory, what the chain may use: without a kilobyte that stays free.
_ROOM = 232_448 - 1024

# The products of which a block takes two tiles of queries.
WIDE = frozenset({"qkv", "up", "down", "output"})

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
        if self.num_layers > _MOST_LAYERS:
            return f"{self.num_layers} layers: at most {_MOST_LAYERS}"
        # The ring holds a pass of units at least, and a warp finishes one of them.
        few = self.groups < self.num_heads or self.wide_groups < self.ff_slices or self._narrow > 8
        if few or self.slots < max(self._narrow, _WIDE_PASS):
            return f"{self.num_queries} queries of {self.hidden_dim}: too much for {self.blocks} blocks"
        if self._weight_units + self._key_units > _MOST_NUMBERS:
            units = f"{self._weight_units} units of weights, {self._key_units} of keys and values"
            return f"{units}: {_MOST_NUMBERS} at most"
        if self.shared_bytes > shared_memory:
            return f"{self.shared_bytes} bytes of shared memory: the device has {shared_memory} a block"
        return None

    @property
    def sources(self) -> tuple[str, ...]:
        chain = (
            "rows.cuh",
            "slices.cuh",
            "wide_stream.cuh",
            "mixture.cuh",
            "wide_attention.cuh",
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
            "kept_keys_values.cuh",
            "wide_keys_values.cuh",
            *chain,
        )

    @property
    def warpgroup_products(self) -> list[tuple[int, bool]]:
        return [(columns, False) for columns in sorted({self.columns, _KEY_VALUE_WIDTH})]

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
        """Elements of a unit of 8 columns in memory."""
        return 8 * max(self.hidden_dim, self.ff_dim // self.ff_slices)

    @cached_property
    def slot_bytes(self) -> int:
        """What a unit takes in the ring, of keys and values those of 32 tokens at least."""
        return max(2 * self.unit_elements, 32 * _KEY_BYTES)

    @cached_property
    def unit_keys(self) -> int:
        """Tokens whose keys and values in a head are a unit."""
        return 32 if self.slot_bytes < 64 * _KEY_BYTES else 64

    @cached_property
    def wide_groups(self) -> int:
        """How many blocks share two tiles of queries in the wide products."""
        return self.blocks // divide_up(self.rows // 16, 2)

    def shares(self, product: str) -> list[Share]:
        """What each block of the same rows has of a product.

        The units of one whose contracted axis is sliced are those of all slices, one slice after the other.
        """
        units, groups = self._width(product) // 8, self.wide_groups if product in WIDE else self.groups
        slices = self.ff_slices if product == "down" else 1
        each = groups // slices
        bounds = [s * units + i * units // each for s in range(slices) for i in range(each)]
        bounds += [slices * units] * (groups + 1 - len(bounds))
        return list(pairwise(bounds))

    def _width(self, product: str) -> int:
        widths = {"qkv": 3 * self.hidden_dim, "up": self.ff_dim, "output": self.output_dim}
        return widths.get(product, self.hidden_dim)

    @property
    def _wide_units(self) -> list[int]:
        return [divide_up(self._width(product) // 8, self.wide_groups) for product in ("qkv", "up", "output")]

    @cached_property
    def _most_units(self) -> int:
        """Most units that a block has in all."""
        qkv, up, output = self._wide_units
        down = divide_up(self.hidden_dim // 8, self.wide_groups // self.ff_slices)
        keys = divide_up(_MOST_TOKENS, self.unit_keys)
        return self.num_layers * (qkv + 3 * self._narrow + up + down + keys) + output

    @property
    def _weight_units(self) -> int:
        later, layers, h = self.num_layers - 1, self.num_layers, self.hidden_dim
        columns = later * 5 * h + layers * (h + self.ff_dim + self.ff_slices * h) + self.output_dim
        return columns // 8

    @property
    def _key_units(self) -> int:
        return self.num_layers * self.num_heads * divide_up(_MOST_TOKENS, self.unit_keys)

    @cached_property
    def _behind_ring(self) -> int:
        # What eight warps leave of eight units; of an attention it is 72 columns.
        slices = 8 * 16 * 72 * 4
        columns = 2 * (2 * max(*self._wide_units, self._narrow) * 8 * 4)
        return slices + 16 * 64 * 2 + columns + (2 * 2 + 1) * 8 * 16 * 8

    @cached_property
    def slots(self) -> int:
        """Units that the ring holds."""
        behind = self._behind_ring + self._behind_all(_MOST_SLOTS)
        return min(_MOST_SLOTS, (_ROOM - behind) // self.slot_bytes)

    @cached_property
    def shared_bytes(self) -> int:
        chain = self.slots * self.slot_bytes + self._behind_ring
        keys_values = _KEY_VALUE_STAGES * (_TILE + self.key_value_columns) * 128
        return max(chain, keys_values, _STAGES * (_TILE + self.columns) * 128) + self._behind_all(self.slots)

    def _behind_all(self, slots: int) -> int:
        # Arrivals, the block's share of every product, and where its units lie.
        return (slots + 2 * _KEY_VALUE_STAGES + 1) * 8 + 7 * 12 + 2 * (self._most_units + 1)

    @property
    def key_value_columns(self) -> int:
        return _KEY_VALUE_PARTS * _KEY_VALUE_WIDTH

    @cached_property
    def exchange_elements(self) -> int:
        h = self.hidden_dim
        # What the norm needs of rows, see ROWS_AND_SUMS.
        sums = self.groups * self.rows * 4
        to_attention = self.rows * 5 * h + divide_up(self.rows, 32) * 32 * h + sums
        # The first layer's query is a constant.
        return self.num_layers * (to_attention + self.rows * (3 * h + self.ff_dim) + 2 * sums) - to_attention

    @cached_property
    def part_elements(self) -> int:
        """Elements of the fp32 sums of the slices of the feed-forward, of all layers."""
        return self.num_layers * 2 * self.ff_slices * self.rows * self.hidden_dim

    def buffer_elements(self, vlm_tokens: int, dino_tokens: int) -> int:
        h, total = self.hidden_dim, vlm_tokens + dino_tokens
        if total > _MOST_TOKENS:
            raise ValueError(f"context of {total} tokens: the persistent kernel takes {_MOST_TOKENS} at most")
        parts = self.teams + sum(divide_up(tokens, _TILE) for tokens in (vlm_tokens, dino_tokens))
        words = 2 if self.dtype == torch.float16 else 1
        once = self.part_elements + parts * _TILE * h * words
        # The context in whole tiles; keys and values in whole units.
        once += divide_up(total, _TILE) * _TILE * h
        once += 2 * self.num_layers * divide_up(total, self.unit_keys) * self.unit_keys * h
        return once + 2 * (self.exchange_elements + parts * 64 * 8)

    def defines(self) -> dict[str, int]:
        return {name: value for name, value in super().defines().items() if name not in _OTHER_DEFINES} | {
            "SLOTS": self.slots,
            "FF_SLICES": self.ff_slices,
            "MOST_TOKENS": _MOST_TOKENS,
            "KV_PARTS": _KEY_VALUE_PARTS,
            "KV_WIDTH": _KEY_VALUE_WIDTH,
            "KV_STAGES": _KEY_VALUE_STAGES,
            "EXPECTED_SHARED_BYTES": self.shared_bytes,
            "EXPECTED_EXCHANGE": self.exchange_elements,
            "EXPECTED_PARTS": self.part_elements,
        }
