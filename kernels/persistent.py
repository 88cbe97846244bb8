"""The persistent kernel: a whole adapter in one cooperative launch, for one clip at a time.

A chain of launches waits some microseconds between two of them; here a block waits for the few numbers that it needs.
The kernel is CUDA C++ (`cuda/`), because blocks that exchange results while they run, and weights that come
while they wait, cannot be said in Triton. What it computes is the forward of the packed adapter, launch by launch in
`reference.py`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import Any, Protocol

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
from foresight.kernels.persistent_shape import PersistentShape
from foresight.kernels.wide_shape import WideShape
from foresight.kernels.wide_streams import dealt_streams

__all__ = [
    "STAMPS",
    "Buffers",
    "PersistentParameters",
    "Weights",
    "persistent_source",
]

_FOLDER = Path(__file__).parent / "cuda"
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


def persistent_source(shape: PersistentShape, primitives: str | None = None) -> str:
    """The kernel's source for `shape`, with the hardware's instructions or with other `primitives`."""
    if primitives is None:
        own = (_FOLDER / "primitives.cuh").read_text(encoding="utf-8")
        instructions = [
            *starmap(partial(_multiply_warpgroup, shape.dtype), shape.warpgroup_products),
            *map(_multiplied, sorted({columns for columns, _ in shape.warpgroup_products})),
        ]
        primitives = own.replace("// {multiply_warpgroup}", "\n\n".join(instructions))
    return primitives + "".join((_FOLDER / name).read_text(encoding="utf-8") for name in shape.sources)


def _multiply_warpgroup(dtype: torch.dtype, columns: int, in_registers: bool) -> str:
    """The instruction for [64, 16] x [16, columns], which names each of its registers."""
    count = columns // 2
    kind = "f16" if dtype == torch.float16 else "bf16"
    registers = ", ".join(f"%{i}" for i in range(count))
    if in_registers:
        kind_of_a, given, used = "uint4", '"r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w)', 4
        a, orders = "{" + ", ".join(f"%{count + i}" for i in range(used)) + "}", "0"
    else:
        kind_of_a, given, used, a, orders = "uint64_t", '"l"(a)', 1, f"%{count}", "0, 0"
    return (
        f"DEVICE void multiply_warpgroup(float (&sums)[{count // 4}][4], {kind_of_a} a, uint64_t b, int add) {{\n"
        f'  asm volatile("{{.reg .pred p; setp.ne.b32 p, %{count + used + 1}, 0; "\n'
        f'               "wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{kind}.{kind} "\n'
        f'               "{{{registers}}}, {a}, %{count + used}, p, 1, 1, {orders};}}"\n'
        f'               : {_sums(columns)} : {given}, "l"(b), "r"(add));\n}}'
    )


def _multiplied(columns: int) -> str:
    """What waits for such products."""
    return (
        f"DEVICE void multiplied(float (&sums)[{columns // 8}][4]) {{\n"
        f'  asm volatile("wgmma.wait_group.sync.aligned 0;" : {_sums(columns)} :: "memory");\n}}'
    )


def _sums(columns: int) -> str:
    return ", ".join(f'"+f"(sums[{i // 4}][{i % 4}])' for i in range(columns // 2))


class Buffers:
    """The tensors that the kernel works in for clips of `dino_tokens` and up to `vlm_tokens` tokens.

    `output` [num_queries, output_dim] is what a launch writes. After a launch that was broken off these buffers are
    spoilt: make new ones.
    """

    def __init__(
        self, shape: PersistentShape, vlm_tokens: int, dino_tokens: int, device: torch.device
    ) -> None:
        self.vlm_tokens, self.dino_tokens = vlm_tokens, dino_tokens
        elements = shape.buffer_elements(vlm_tokens, dino_tokens)
        self.exchange = torch.full((elements,), -1, dtype=torch.int16, device=device)
        self.counter = torch.zeros(3, dtype=torch.int64, device=device)
        self.stamps = torch.zeros(shape.blocks, STAMPS, dtype=torch.int64, device=device)
        self.output = torch.empty(shape.num_queries, shape.output_dim, dtype=shape.dtype, device=device)
        shares = shape.team_shares(vlm_tokens, dino_tokens)
        counts = (vlm_tokens, dino_tokens, shares.vlm_counted, shares.dino_counted)
        self.arguments: dict[str, Any] = {name: getattr(self, name).data_ptr() for name in _SCRATCH}
        self.arguments |= dict(zip(_COUNTS, counts, strict=True), team_steps_inverse=1 / shares.steps)
        self.arguments["first_steps"] = (ctypes.c_int * len(shares.first_steps))(*shares.first_steps)


_SCRATCH = ("exchange", "output", "counter", "stamps")
_COUNTS = ("vlm_tokens", "dino_tokens", "vlm_counted", "dino_counted")
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


def _named_steps(weights: Weights) -> Iterator[tuple[str, _Linear]]:
    """The chain's products in the order of wide_layout.cuh."""
    for layer in weights.layers:
        queries = layer.queries
        if queries is not None:
            yield from (("qkv", queries.qkv), ("self_out", queries.out), ("query", queries.query))
        yield from (("cross_out", layer.cross_out), ("up", layer.up), ("down", layer.down))
    yield "output", weights.out


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
        # Within 16 places of the contracted axis the context may lie in that order, too.
        key_values = side_by_side(weights.keys_values.weight)
        if isinstance(shape, WideShape):
            named = list(_named_steps(weights))
            self._weights = dealt_streams([(name, linear.weight) for name, linear in named], shape)
            steps = [(linear.weight, linear.bias, linear.sums) for _, linear in named]
        else:
            key_values = side_by_side(key_values.T).T
            steps = list(_steps(weights, shape))
            self._weights = torch.cat([weight.flatten() for weight, _, _ in steps])
        self._key_values = swizzled(key_values, shape.key_value_columns)
        self._columns = torch.cat([biases_and_sums(bias, sums) for _, bias, sums in steps])

        class Parameters(ctypes.Structure):
            _fields_ = [
                *((name, ctypes.c_void_p) for name in ("vlm", "dino", "lengths", "table")),
                *((name, ctypes.c_void_p) for name in _POINTERS),
                *((name, ctypes.c_void_p) for name in _SCRATCH),
                *((name, ctypes.c_int) for name in _COUNTS),
                ("team_steps_inverse", ctypes.c_float),
                ("first_steps", ctypes.c_int * (shape.teams + 2)),
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
