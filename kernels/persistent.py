"""The persistent kernel: a whole adapter in one cooperative launch, for one clip at a time.

A chain of launches waits some microseconds between two of them; here a block waits for the few numbers that it needs.
The kernel is CUDA C++ (`cuda/`), because blocks that exchange results while they run, and weights that come
while they wait, cannot be said in Triton. What it computes is the forward of the packed adapter, launch by launch in
`reference.py`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from foresight.kernels.arrangement import (
    biases_and_sums,
    dealt,
    fragments,
    placed,
    side_by_side,
    sliced_fragments,
    swizzled,
)

__all__ = [
    "STAMPS",
    "Buffers",
    "PersistentParameters",
    "PersistentShape",
    "Weights",
    "persistent_source",
]

_FOLDER = Path(__file__).parent / "cuda"
_SOURCES = (
    "layout.cuh",
    "projection.cuh",
    "keys_values.cuh",
    "attention.cuh",
    "product.cuh",
    "chain.cuh",
    "adapter.cu",
)
_TILE = 128
# Most units of 8 columns that a block has of a wide product.
_WIDEST = 11
_WIDEST_FEED_FORWARD = 3072
_STAGES = 5
# Of a block's shared memory, what the context may use: without sums, arrivals, and a kilobyte that stays free.
_ROOM = 232_448 - 2 * 1024 - 4 * 8
STAMPS = 128


class _Linear(Protocol):
    @property
    def weight(self) -> Tensor: ...
    @property
    def bias(self) -> Tensor: ...
    @property
    def sums(self) -> Tensor | None: ...


class _Queries(Protocol):
    @property
    def qkv(self) -> _Linear: ...
    @property
    def out(self) -> _Linear: ...
    @property
    def query(self) -> _Linear: ...


class _Layer(Protocol):
    @property
    def queries(self) -> _Queries | None: ...
    @property
    def cross_out(self) -> _Linear: ...
    @property
    def up(self) -> _Linear: ...
    @property
    def down(self) -> _Linear: ...


class Weights(Protocol):
    """A packed adapter's tensors, all on one device; the first layer has no `queries`."""

    @property
    def vlm(self) -> _Linear: ...
    @property
    def dino(self) -> _Linear: ...
    @property
    def keys_values(self) -> _Linear: ...
    @property
    def hidden_states(self) -> Tensor: ...
    @property
    def query(self) -> Tensor: ...
    @property
    def layers(self) -> Iterable[_Layer]: ...
    @property
    def out(self) -> _Linear: ...


@dataclass(frozen=True, kw_only=True)
class PersistentShape:
    """What the kernel is compiled for: an adapter's sizes, its dtype, and `blocks`."""

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

    def refusal(self, shared_memory: int) -> str | None:
        """Why the kernel cannot serve this shape with so many bytes of shared memory a block; None if it can."""
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
        if self.groups < 2 * self.num_heads or not self._fits_a_block():
            return f"{self.num_queries} queries of {self.hidden_dim}: too much for {self.blocks} blocks"
        # A thread holds its part of two rows in registers.
        if self.ff_dim > _WIDEST_FEED_FORWARD:
            return f"feed-forward of {self.ff_dim}: at most {_WIDEST_FEED_FORWARD}"
        if 2 * self.num_layers * self.hidden_dim > self.blocks * self.key_value_columns:
            return f"{self.num_layers} layers of {self.hidden_dim}: too much for {self.blocks} blocks"
        if self.shared_bytes > shared_memory:
            return f"{self.shared_bytes} bytes of shared memory: the device has {shared_memory} a block"
        return None

    def _fits_a_block(self) -> bool:
        return self._units(self.hidden_dim) <= 4 and max(map(self._units, self._wide_widths)) <= _WIDEST

    @property
    def _wide_widths(self) -> tuple[int, ...]:
        return (3 * self.hidden_dim, self.ff_dim, self.output_dim // self.out_passes)

    @cached_property
    def rows(self) -> int:
        """The queries, in whole tiles of 16."""
        return _divide_up(self.num_queries, 16) * 16

    @cached_property
    def groups(self) -> int:
        """How many blocks share a tile of queries."""
        return self.blocks // (self.rows // 16)

    @cached_property
    def columns(self) -> int:
        """Columns of a tile of the context's products."""
        return max(size for size in range(16, 129, 16) if self.hidden_dim % size == 0)

    @cached_property
    def out_passes(self) -> int:
        """In how many parts the output is made, so that a part's weights fit into shared memory."""
        passes = (n for n in range(1, self.output_dim // 8 + 1) if self.output_dim % (8 * n) == 0)
        return next((n for n in passes if self._units(self.output_dim // n) <= _WIDEST), 1)

    @cached_property
    def splits(self) -> int:
        """Parts of the context among which an attention is split."""
        return min(3, self.groups // self.num_heads)

    @cached_property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        h, narrow = self.hidden_dim, self._units(self.hidden_dim)
        wide = max(self._units(3 * h) + narrow, *map(self._units, self._wide_widths))
        line = _divide_up(8 * wide - 24, 32) * 32 + 24
        region = 16 * max(narrow * max(h, self.ff_dim), wide * h, 8 * h)
        chain = 2 * region + 8 * 16 * max(line, 72) * 4 + 16 * (64 | 16) * 2 + 16 * narrow * 32
        stages = _STAGES * (_TILE + self.columns) * 128
        keys_values = self.key_value_columns * h * 2
        keys_values += max(64 * h * 2, min(stages, _ROOM // 1024 * 1024 - keys_values))
        return max(stages, keys_values, chain) + 1024 + 4 * 8

    @cached_property
    def key_value_columns(self) -> int:
        """Columns of keys and values that a block makes: so many that ten blocks share them, 160 at most."""
        share = _divide_up(2 * self.num_layers * self.hidden_dim, max(1, self.blocks // 10))
        return min(160, _divide_up(share, 32) * 32)

    @cached_property
    def teams(self) -> int:
        """How many groups of blocks make tiles of the context, each block of one some columns of the same tokens."""
        return self.blocks // (self.hidden_dim // self.columns)

    def team_steps(self, vlm_tokens: int, dino_tokens: int) -> int:
        """Steps of 64 places of the contracted axis that a team makes, of those of all tiles of the context.

        A tile has about eight parts at most, nine where it begins within a share: as many as `finish_units` in
        projection.cuh reads at once, of fp16 adapters half.
        """
        steps = {dim: _divide_up(dim, 64) for dim in (self.vlm_dim, self.dino_dim)}
        sizes = ((vlm_tokens, self.vlm_dim), (dino_tokens, self.dino_dim))
        everything = sum(_divide_up(tokens, _TILE) * steps[dim] for tokens, dim in sizes)
        return max(_divide_up(everything, self.teams), *(_divide_up(n, 8) for n in steps.values()))

    @cached_property
    def exchange_elements(self) -> int:
        """Elements of one of the two sets of buffers through which the chain's blocks exchange results."""
        h = self.hidden_dim
        to_query = self.rows * (3 * h + 4 * self.groups) + _divide_up(self.rows, 32) * 32 * h
        # The first layer's query is a constant.
        rest = self.rows * ((3 + self.splits) * h + self.ff_dim + 8 * self.num_heads)
        return self.num_layers * (to_query + rest) - to_query

    @cached_property
    def part_elements(self) -> int:
        """Elements of the parts that SELF_OUT adds in the layers but the first: of the residual, and of the query."""
        return (self.num_layers - 1) * self.rows * 16 * _divide_up(self.num_heads, 8) * self.hidden_dim

    def _units(self, width: int) -> int:
        return _divide_up(width // 8, self.groups) if self.groups else width

    def defines(self) -> dict[str, int]:
        """The macros that the source is compiled with."""
        sizes = {
            "HIDDEN": self.hidden_dim,
            "HEADS": self.num_heads,
            "FF": self.ff_dim,
            "OUT": self.output_dim,
            "OUT_PASSES": self.out_passes,
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
        return sizes | ({"HALF": 1} if self.dtype == torch.float16 else {})


def persistent_source(shape: PersistentShape, primitives: str | None = None) -> str:
    """The kernel's source for `shape`, with the hardware's instructions or with other `primitives`."""
    if primitives is None:
        own = (_FOLDER / "primitives.cuh").read_text(encoding="utf-8")
        columns = sorted({shape.columns, shape.key_value_columns // 2})
        instructions = "\n\n".join(_multiply_warpgroup(shape.dtype, n) for n in columns)
        primitives = own.replace("// {multiply_warpgroup}", instructions)
    return primitives + "".join((_FOLDER / name).read_text(encoding="utf-8") for name in _SOURCES)


def _multiply_warpgroup(dtype: torch.dtype, columns: int) -> str:
    """The instruction for [64, 16] x [16, columns], and to wait for it, which name each of its registers."""
    count = columns // 2
    kind = "f16" if dtype == torch.float16 else "bf16"
    registers = ", ".join(f"%{i}" for i in range(count))
    operands = ", ".join(f'"+f"(sums[{i // 4}][{i % 4}])' for i in range(count))
    return (
        f"DEVICE void multiply_warpgroup(float (&sums)[{count // 4}][4], uint64_t a, uint64_t b, int add) {{\n"
        f'  asm volatile("{{.reg .pred p; setp.ne.b32 p, %{count + 2}, 0; "\n'
        f'               "wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{kind}.{kind} "\n'
        f'               "{{{registers}}}, %{count}, %{count + 1}, p, 1, 1, 0, 0;}}"\n'
        f'               : {operands} : "l"(a), "l"(b), "r"(add));\n}}\n\n'
        f"DEVICE void multiplied(float (&sums)[{count // 4}][4]) {{\n"
        f'  asm volatile("wgmma.wait_group.sync.aligned 0;" : {operands} :: "memory");\n}}'
    )


class Buffers:
    """The tensors that the kernel works in for clips of `dino_tokens` and up to `vlm_tokens` tokens.

    `output` [num_queries, output_dim] is what a launch writes. After a launch that was broken off these buffers are
    spoilt: make new ones.
    """

    def __init__(
        self, shape: PersistentShape, vlm_tokens: int, dino_tokens: int, device: torch.device
    ) -> None:
        self.vlm_tokens, self.dino_tokens = vlm_tokens, dino_tokens
        total, h = vlm_tokens + dino_tokens, shape.hidden_dim
        padded = _divide_up(total, 32) * 32
        dtype = shape.dtype
        # Parts of sums once, and two sets of what the chain exchanges, the context, keys and values, and statistics.
        parts = shape.teams + sum(_divide_up(tokens, _TILE) for tokens in (vlm_tokens, dino_tokens))
        words = 2 if dtype == torch.float16 else 1
        once = shape.part_elements + parts * _TILE * h * words
        twice = shape.exchange_elements + (total + 2 * shape.num_layers * padded) * h + parts * 64 * 8
        self.exchange = torch.full((once + 2 * twice,), -1, dtype=torch.int16, device=device)
        self.counter = torch.zeros(1, dtype=torch.int64, device=device)
        self.stamps = torch.zeros(shape.blocks, STAMPS, dtype=torch.int64, device=device)
        self.output = torch.empty(shape.num_queries, shape.output_dim, dtype=dtype, device=device)
        steps = shape.team_steps(vlm_tokens, dino_tokens)
        counts = (vlm_tokens, dino_tokens, steps)
        self.arguments: dict[str, float] = {name: getattr(self, name).data_ptr() for name in _SCRATCH}
        self.arguments |= dict(zip(_COUNTS, counts, strict=True), team_steps_inverse=1 / steps)


_SCRATCH = ("exchange", "output", "counter", "stamps")
_COUNTS = ("vlm_tokens", "dino_tokens", "team_steps")
_POINTERS = (
    "vlm_weights",
    "dino_weights",
    "vlm_sums",
    "dino_sums",
    "key_value_weights",
    "key_value_bias",
    "hidden_states",
    "query",
    "weights",
    "columns",
)


def _steps(weights: Weights, shape: PersistentShape) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Weights as they lie in memory, biases and sums of columns of the chain's steps, in the order of layout.cuh."""
    none = weights.query.new_empty(0, dtype=shape.dtype)
    heads, blocks = shape.num_heads, shape.groups
    for layer in weights.layers:
        if layer.queries is not None:
            qkv, out, query = layer.queries.qkv, layer.queries.out, layer.queries.query
            # What makes the query is rounded before its norm takes the mean out: rows that sum to about zero have none.
            centred = query.weight.float() - query.weight.float().mean(1, keepdim=True)
            rounded = centred.to(shape.dtype)
            both = [dealt(fragments(weight), blocks) for weight in (qkv.weight, rounded)]
            yield torch.cat(both, dim=1), qkv.bias, qkv.sums
            # The query's product after the output's, as one.
            whole = (centred @ out.weight.float()).to(shape.dtype)
            slices = [sliced_fragments(weight, heads) for weight in (out.weight, whole)]
            yield torch.cat(slices), out.bias, centred @ out.bias
            yield none, query.bias, rounded.float().sum(1)
        for linear in (layer.cross_out, layer.up, layer.down):
            yield fragments(linear.weight), linear.bias, linear.sums
    yield fragments(weights.out.weight), weights.out.bias, weights.out.sums


class PersistentParameters:
    """The kernel's argument: addresses, and the tensors that they are those of.

    `weights` are rearranged once; `fill` names what a launch reads and writes.
    """

    def __init__(self, shape: PersistentShape, weights: Weights) -> None:
        self.shape, self.weights = shape, weights
        query = torch.zeros(shape.rows, shape.hidden_dim, dtype=shape.dtype, device=weights.query.device)
        query[: shape.num_queries] = weights.query[0]
        self.query = placed(query)
        self._vlm = swizzled(side_by_side(weights.vlm.weight), shape.columns)
        self._dino = swizzled(side_by_side(weights.dino.weight), shape.columns)
        self._key_values = swizzled(side_by_side(weights.keys_values.weight), shape.key_value_columns)
        steps = list(_steps(weights, shape))
        self._weights = torch.cat([weight.flatten() for weight, _, _ in steps])
        parts = [1] * (len(steps) - 1) + [shape.out_passes]
        columns = (biases_and_sums(bias, sums, n) for (_, bias, sums), n in zip(steps, parts, strict=True))
        self._columns = torch.cat(list(columns))

        class Parameters(ctypes.Structure):
            _fields_ = [
                *((name, ctypes.c_void_p) for name in ("vlm", "dino", "lengths", "table")),
                *((name, ctypes.c_void_p) for name in _POINTERS),
                *((name, ctypes.c_void_p) for name in _SCRATCH),
                *((name, ctypes.c_int) for name in _COUNTS),
                ("team_steps_inverse", ctypes.c_float),
            ]

        self.structure = Parameters(
            vlm_weights=self._vlm.data_ptr(),
            dino_weights=self._dino.data_ptr(),
            vlm_sums=_address(weights.vlm.sums),
            dino_sums=_address(weights.dino.sums),
            key_value_weights=self._key_values.data_ptr(),
            key_value_bias=weights.keys_values.bias.data_ptr(),
            hidden_states=weights.hidden_states.data_ptr(),
            query=self.query.data_ptr(),
            weights=self._weights.data_ptr(),
            columns=self._columns.data_ptr(),
        )

    def tensors(self) -> Iterator[Tensor]:
        """What is kept besides the weights."""
        yield from (self.query, self._vlm, self._dino, self._key_values, self._weights, self._columns)

    def fill(
        self, vlm: Tensor, dino: Tensor, table: Tensor, lengths: Tensor, buffers: Buffers
    ) -> ctypes.Structure:
        """The structure for one launch, which is copied when it is launched.

        `vlm` [1, N, vlm_dim], `dino` [1, M, dino_dim], `table` [M + N, hidden_dim] fp32 and `lengths` [1] int32 are as
        in `reference.encode_context`, all contiguous and aligned to 16 bytes, with the N and M of `buffers`.
        """
        structure = self.structure
        structure.vlm, structure.dino = vlm.data_ptr(), dino.data_ptr()
        structure.table, structure.lengths = table.data_ptr(), lengths.data_ptr()
        for name, value in buffers.arguments.items():
            setattr(structure, name, value)
        return structure


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _divide_up(size: int, by: int) -> int:
    return -(-size // by)
