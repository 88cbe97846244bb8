"""The project's attention kernel as PTX for TensorRT: static shapes, plain launches, nothing hidden.

A plugin's kernel gets its pointers and no floats, workspace or attributes, so that everything else is a
constant here. Needs Triton, and no GPU.
"""
# Triton is untyped, and its compile-time constants are named in capitals.
# mypy: disable-error-code="import-untyped,untyped-decorator,no-untyped-def,no-untyped-call"
# ruff: noqa: N803

from __future__ import annotations

import hashlib
import inspect
import re
from dataclasses import dataclass
from functools import cache

import triton
import triton.language as tl
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from foresight.export.errors import ExportError
from foresight.kernels import attention
from foresight.kernels.attention import _attend_kernel

__all__ = [
    "TACTICS",
    "AttentionShape",
    "AttentionTactic",
    "CompiledAttention",
    "compile_attention",
    "source_hash",
]

_LOG2_E = 1.4426950408889634
# A block gets this much without asking for more, which TensorRT is not known to do for a plugin.
_MOST_SHARED_BYTES = 48 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShape:
    """What a kernel is compiled for: the first `always` keys and `lengths` more of each row take part."""

    batch: int
    queries: int
    keys: int
    width: int
    heads: int
    always: int
    dtype: str

    def __post_init__(self) -> None:
        if self.dtype not in ("bf16", "fp16"):
            raise ExportError(f"dtype {self.dtype!r}: the attention plugin computes in bf16 or fp16")
        if self.width % self.heads:
            raise ExportError(f"heads {self.heads}: must divide the width {self.width}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionTactic:
    """One way to launch the kernel, in the terms of `foresight.kernels.launch.Launch`."""

    rows: int
    depth: int
    warps: int
    stages: int


# TensorRT times them all when it builds and keeps the quickest.
TACTICS: dict[int, AttentionTactic] = {
    1: AttentionTactic(rows=16, depth=64, warps=1, stages=2),
    2: AttentionTactic(rows=16, depth=64, warps=4, stages=2),
    3: AttentionTactic(rows=32, depth=32, warps=2, stages=3),
    4: AttentionTactic(rows=16, depth=32, warps=1, stages=3),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledAttention:
    """A kernel and its launch: blocks of `threads` on `grid`, with `shared` bytes of shared memory each."""

    name: str
    ptx: str
    grid: tuple[int, int, int]
    threads: int
    shared: int


@triton.jit
def _attention_plugin(
    query, key_value, lengths, output,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, ROWS_TOTAL: tl.constexpr, SCALE: tl.constexpr,
    ALWAYS: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr, ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
):  # fmt: skip
    # One part of the context, so that the output is whole and no logarithms are written.
    _attend_kernel(
        query=query, keys_values=key_value, lengths=lengths, output=output, logs=output, queries=QUERIES,
        keys=KEYS, query_step=QUERIES, split_keys=KEYS, scale=SCALE, always=ALWAYS, rows_total=ROWS_TOTAL,
        QUERY_WIDTH=WIDTH, KEY_WIDTH=2 * WIDTH, QUERY_AT=0, KEY_AT=0, VALUE_AT=WIDTH, HEADS=HEADS, HEAD=HEAD,
        SPLITS=1, ROWS=ROWS, DEPTH=DEPTH, PROGRAMMATIC=0,
    )  # fmt: skip


def source_hash() -> str:
    """A hash of the kernel's source, which tells TensorRT's timing cache one version from another."""
    source = inspect.getsource(attention) + inspect.getsource(inspect.getmodule(source_hash) or attention)
    return hashlib.sha256(source.encode()).hexdigest()[:16]


@cache
def compile_attention(shape: AttentionShape, tactic: AttentionTactic, capability: int) -> CompiledAttention:
    """PTX for GPUs of `capability` (90 for sm_90).

    Raises ExportError for a kernel that needs scratch memory or more than 48 KB of shared memory.
    """
    head = shape.width // shape.heads
    constants = {
        "QUERIES": shape.queries,
        "KEYS": shape.keys,
        "ROWS_TOTAL": shape.batch * shape.queries,
        "SCALE": _LOG2_E * head**-0.5,
        "ALWAYS": shape.always,
        "WIDTH": shape.width,
        "HEADS": shape.heads,
        "HEAD": head,
        "ROWS": tactic.rows,
        "DEPTH": tactic.depth,
    }
    pointer = f"*{shape.dtype}"
    signature = {"query": pointer, "key_value": pointer, "lengths": "*i32", "output": pointer}
    source = ASTSource(
        fn=_attention_plugin,
        signature=signature | dict.fromkeys(constants, "constexpr"),
        constexprs=constants,
        # TensorRT aligns its buffers to far more; without this, Triton loads two bytes at a time.
        attrs={(index,): [["tt.divisibility", 16]] for index in range(len(signature))},
    )
    options = {"num_warps": tactic.warps, "num_stages": tactic.stages}
    with knobs.compilation.scope():
        # Lines of the source would carry this machine's paths into the plan.
        knobs.compilation.disable_line_info = True
        kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    _check(kernel.metadata)
    return CompiledAttention(
        name=kernel.metadata.name,
        ptx=_drop_parameters(kernel.asm["ptx"], keep=len(signature)),
        grid=(-(-shape.queries // tactic.rows), shape.batch * shape.heads, 1),
        threads=32 * kernel.metadata.num_warps,
        shared=kernel.metadata.shared,
    )


def _drop_parameters(ptx: str, keep: int) -> str:
    """The kernel without the pointers to scratch memory that Triton appends: nobody would pass them."""
    for parameter in re.findall(r"^\s*\.param [^\n]*?(\w+_param_\d+),?$", ptx, flags=re.MULTILINE)[keep:]:
        if ptx.count(parameter) != 1:
            raise ExportError(f"attention kernel: reads {parameter}, which a plugin's kernel does not get")
        ptx = re.sub(rf",?\n\s*\.param [^\n]*{parameter}(?=,?\n)", "", ptx)
    return ptx


def _check(metadata: object) -> None:
    for name in ("global_scratch_size", "profile_scratch_size"):
        size = getattr(metadata, name, 0)
        if size:
            raise ExportError(f"attention kernel: {name} is {size}, a plugin's kernel has no scratch memory")
    shared = getattr(metadata, "shared", 0)
    if shared > _MOST_SHARED_BYTES:
        raise ExportError(
            f"attention kernel: needs {shared} bytes of shared memory, at most {_MOST_SHARED_BYTES}"
        )
