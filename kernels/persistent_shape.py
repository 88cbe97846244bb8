"""What the persistent kernel is compiled for, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

__all__ = ["PersistentShape", "TeamShares", "divide_up"]

_TILE = 128
# Most units of 8 columns that a block has of a wide product, and of the output, three a warp.
_WIDEST = 11
_WIDEST_OUTPUT = 24
_WIDEST_FEED_FORWARD = 3072
_STAGES = 5
# About as many parts has a tile of the context at most: twice as many as `finish_units` in projection.cuh reads at
# once, four times where it reads but four (fp16, the widest adapters).
_PARTS = 14
# Of a block's shared memory, what sums and arrivals take, and what the context may use; a kilobyte stays
# free.
_APART = 1024 + 4 * 8
_ROOM = 232_448 - 1024 - _APART


class TeamShares(NamedTuple):
    """Steps that make a team's share, those counted for a tile of either encoder, and with which each team begins.

    Counted are as many as there are, or as many more as make the shares of a tile whole.
    """

    steps: int
    vlm_counted: int
    dino_counted: int
    first_steps: list[int]


@dataclass(frozen=True, kw_only=True)
class PersistentShape:
    """What the kernel is compiled for: an adapter's sizes, its dtype, and `blocks`.

    With `stamps`, as many as there is place for, blocks note the clock as they pass.
    """

    hidden_dim: int
    num_heads: int
    ff_dim: int
    output_dim: int
    vlm_dim: int
    dino_dim: int
    num_queries: int
    num_layers: int
    dtype: torch.dtype
    blocks: int
    stamps: int = 0

    def refusal(self, shared_memory: int) -> str | None:
        """Why the kernel cannot serve this shape with so many bytes of shared memory a block; None if it can."""
        general = self._general_refusal()
        if general is not None:
            return general
        if self.groups < 2 * self.num_heads or not self._fits_a_block():
            return f"{self.num_queries} queries of {self.hidden_dim}: too much for {self.blocks} blocks"
        # A thread holds its part of two rows in registers.
        if self.ff_dim > _WIDEST_FEED_FORWARD:
            return f"feed-forward of {self.ff_dim}: at most {_WIDEST_FEED_FORWARD}"
        if self._units(self.output_dim) > _WIDEST_OUTPUT:
            widest = 8 * _WIDEST_OUTPUT * self.groups
            return f"output of {self.output_dim}: at most {widest} in {self.blocks} blocks"
        if 2 * self.num_layers * self.hidden_dim > self.blocks * self.key_value_columns:
            return f"{self.num_layers} layers of {self.hidden_dim}: too much for {self.blocks} blocks"
        if self.shared_bytes > shared_memory:
            return f"{self.shared_bytes} bytes of shared memory: the device has {shared_memory} a block"
        return None

    def _general_refusal(self) -> str | None:
        """What neither kernel of this kind serves."""
        if self.dtype not in (torch.bfloat16, torch.float16):
            return f"{self.dtype}: must be torch.bfloat16 or torch.float16"
        if self.hidden_dim != 64 * self.num_heads:
            return f"heads of {self.hidden_dim / self.num_heads:g}: must be 64 wide"
        if any(size % 32 for size in (self.ff_dim, self.vlm_dim, self.dino_dim)):
            return f"widths {self.ff_dim}, {self.vlm_dim}, {self.dino_dim}: must be multiples of 32"
        if self.output_dim % 8:
            return f"output of {self.output_dim}: must be a multiple of 8"
        # Not tested beyond.
        if self.num_queries > 256:
            return f"{self.num_queries} queries: at most 256"
        return None

    def _fits_a_block(self) -> bool:
        wide = max(self._units(3 * self.hidden_dim), self._units(self.ff_dim))
        return self._units(self.hidden_dim) <= 4 and wide <= _WIDEST

    @cached_property
    def rows(self) -> int:
        """The queries, in whole tiles of 16."""
        return divide_up(self.num_queries, 16) * 16

    @cached_property
    def groups(self) -> int:
        """How many blocks share a tile of queries."""
        return self.blocks // (self.rows // 16)

    @cached_property
    def columns(self) -> int:
        """Columns of a tile of the context's products."""
        return max(size for size in range(16, 129, 16) if self.hidden_dim % size == 0)

    @cached_property
    def splits(self) -> int:
        """Parts of the context among which an attention is split."""
        return min(3, self.groups // self.num_heads)

    @property
    def _units_at_once(self) -> int:
        """Most units of 8 columns that a block has of a product but the output."""
        with_query = self._units(3 * self.hidden_dim) + self._units(self.hidden_dim)
        return max(with_query, self._units(self.ff_dim))

    @cached_property
    def region_bytes(self) -> int:
        """What holds a step's weights, or half of the output's."""
        h, output = self.hidden_dim, divide_up(self._units(self.output_dim), 2)
        return 16 * max(self._units(h) * max(h, self.ff_dim), max(self._units_at_once, output, 8) * h)

    @cached_property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        h, narrow = self.hidden_dim, self._units(self.hidden_dim)
        slices = max(self._units_at_once, self._units(self.output_dim), 8) * 8 * 32 * 8
        chain = 2 * self.region_bytes + slices + 16 * (64 | 16) * 2 + narrow * 32 * 16
        stages = _STAGES * (_TILE + self.columns) * 128
        keys_values = self.key_value_columns * h * 2
        keys_values += min(stages, max(_ROOM - keys_values, 0) // 1024 * 1024)
        return max(stages, keys_values, chain) + _APART

    @cached_property
    def key_value_columns(self) -> int:
        """Columns of keys and values that a block makes: so many that ten blocks share them, 160 at most."""
        share = divide_up(2 * self.num_layers * self.hidden_dim, max(1, self.blocks // 10))
        return min(160, divide_up(share, 32) * 32)

    @cached_property
    def teams(self) -> int:
        """How many groups of blocks make tiles of the context, each block of one some columns of the same tokens."""
        return self.blocks // (self.hidden_dim // self.columns)

    @property
    def warpgroup_products(self) -> list[tuple[int, bool]]:
        """Columns of the products that four warps make at once, and whether their rows are in registers."""
        return [(self.columns, False), (self.key_value_columns, True)]

    @property
    def sources(self) -> tuple[str, ...]:
        """The files that the kernel is made of, in order."""
        chain = (
            "rows.cuh",
            "slices.cuh",
            "product.cuh",
            "mixture.cuh",
            "attention.cuh",
            "clearing.cuh",
            "chain.cuh",
            "adapter.cu",
        )
        return (
            "sizes.cuh",
            "parameters.cuh",
            "layout.cuh",
            "places.cuh",
            "projection.cuh",
            "kept_keys_values.cuh",
            "keys_values.cuh",
            *chain,
        )

    def team_shares(self, vlm_tokens: int, dino_tokens: int) -> TeamShares:
        """Who makes which steps of 64 places of the contracted axis, of those of all tiles of the context."""
        tiles = [divide_up(tokens, _TILE) for tokens in (vlm_tokens, dino_tokens)]
        steps = [divide_up(dim, 64) for dim in (self.vlm_dim, self.dino_dim)]
        everything = sum(n * each for n, each in zip(tiles, steps, strict=True))
        even = max(divide_up(everything, self.teams), *(divide_up(each, _PARTS) for each in steps))
        share, counted = even, steps
        # A team that goes on in another tile has a part more to publish, which takes as long as a step.
        for longer in (even + 1, even):
            whole = [divide_up(each, longer) * longer for each in steps]
            if sum(n * each for n, each in zip(tiles, whole, strict=True)) <= self.teams * longer:
                share, counted = longer, whole
        first_steps = [_made(team * share, tiles, steps, counted) for team in range(self.teams + 2)]
        return TeamShares(share, counted[0], counted[1], first_steps)

    @cached_property
    def exchange_elements(self) -> int:
        """Elements of one of the two sets of buffers through which the chain's blocks exchange results."""
        h = self.hidden_dim
        to_query = self.rows * (3 * h + 4 * self.groups) + divide_up(self.rows, 32) * 32 * h
        # The first layer's query is a constant.
        rest = self.rows * ((3 + self.splits) * h + self.ff_dim + 8 * self.num_heads)
        return self.num_layers * (to_query + rest) - to_query

    @cached_property
    def part_elements(self) -> int:
        """Elements of the parts that SELF_OUT adds in the layers but the first: of the residual, and of the query."""
        return (self.num_layers - 1) * self.rows * 2 * self.num_heads * self.hidden_dim

    def buffer_elements(self, vlm_tokens: int, dino_tokens: int) -> int:
        """Elements of all that blocks exchange: parts of sums once, the rest twice; see `Exchange` in layout.cuh."""
        h, padded = self.hidden_dim, divide_up(vlm_tokens + dino_tokens, 32) * 32
        parts = self.teams + sum(divide_up(tokens, _TILE) for tokens in (vlm_tokens, dino_tokens))
        words = 2 if self.dtype == torch.float16 else 1
        once = self.part_elements + parts * _TILE * h * words
        twice = self.exchange_elements + (1 + 2 * self.num_layers) * padded * h + parts * 64 * 8
        return once + 2 * twice

    def _units(self, width: int) -> int:
        return divide_up(width // 8, self.groups) if self.groups else width

    def defines(self) -> dict[str, int]:
        """The macros that the source is compiled with."""
        sizes = {
            "HIDDEN": self.hidden_dim,
            "HEADS": self.num_heads,
            "FF": self.ff_dim,
            "OUT": self.output_dim,
            "VLM_DIM": self.vlm_dim,
            "DINO_DIM": self.dino_dim,
            "QUERIES": self.num_queries,
            "LAYERS": self.num_layers,
            "GRID": self.blocks,
            "COLUMNS": self.columns,
            "KV_COLUMNS": self.key_value_columns,
            "ROOM": _ROOM,
            "EXPECTED_SHARED_BYTES": self.shared_bytes,
            "EXPECTED_EXCHANGE": self.exchange_elements,
            "EXPECTED_PARTS": self.part_elements,
        }
        if self.stamps:
            sizes["STAMPS"] = self.stamps
        return sizes | ({"HALF": 1} if self.dtype == torch.float16 else {})


def _made(counted: int, tiles: list[int], steps: list[int], counted_each: list[int]) -> int:
    """How many steps there are among the first `counted`, of tiles of two kinds."""
    made = 0
    for number, each, more in zip(tiles, steps, counted_each, strict=True):
        whole, rest = divmod(min(counted, number * more), more)
        made += whole * each + min(rest, each)
        counted = max(0, counted - number * more)
    return made


def divide_up(size: int, by: int) -> int:
    return -(-size // by)
