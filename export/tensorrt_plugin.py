"""The project's attention as an ahead-of-time TensorRT plugin: `foresight::attention`.

Uses TensorRT's own registration, so it needs its Python package (10.9 or later), and no GPU.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from foresight.export.attention_ptx import TACTICS, AttentionShape, CompiledAttention, compile_attention
from foresight.export.errors import ExportError

__all__ = ["PLUGIN", "launch_of", "register_plugin"]

PLUGIN = "foresight::attention"


def register_plugin(capability: int) -> None:
    """Register the plugin for GPUs of `capability` (90 for sm_90); doing it again changes nothing.

    Inputs: query [B, Q, C], key_value [B, K, 2C], lengths [B] int32; output [B, Q, C]. Of the keys the first
    `always` + lengths[b] take part. Shapes must be fixed. `source_hash` keeps timings of an older kernel from
    being taken for this one's.
    """
    trt: Any = import_module("tensorrt")
    trtp: Any = import_module("tensorrt.plugin")
    if hasattr(trtp.op, "foresight") and hasattr(trtp.op.foresight, "attention"):
        return

    def describe(
        query: Any, key_value: Any, lengths: Any, num_heads: int, always: int, source_hash: str
    ) -> Any:
        del key_value, lengths, num_heads, always, source_hash
        return query.like()

    def tune(
        query: Any, key_value: Any, lengths: Any, num_heads: int, always: int, source_hash: str, outputs: Any
    ) -> Any:
        del query, key_value, lengths, num_heads, always, source_hash, outputs
        return [trtp.AutoTuneCombination("BF16|FP16, BF16|FP16, INT32, BF16|FP16", "LINEAR", list(TACTICS))]

    def implement(
        query: Any,
        key_value: Any,
        lengths: Any,
        num_heads: int,
        always: int,
        source_hash: str,
        outputs: Any,
        tactic: int,
    ) -> Any:
        del lengths, source_hash, outputs
        kernel = launch_of(trt, query, key_value, num_heads, always, tactic, capability)
        launch = trtp.KernelLaunchParams()
        launch.grid_x, launch.grid_y, launch.grid_z = kernel.grid
        launch.block_x, launch.shared_mem = kernel.threads, kernel.shared
        return kernel.name, kernel.ptx, launch, trtp.SymIntExprs(0)

    _annotate(trtp, describe, trtp.TensorDesc)
    _annotate(trtp, tune, list.__class_getitem__(trtp.AutoTuneCombination))
    kernel_types = (str, str, trtp.KernelLaunchParams, trtp.SymIntExprs)
    _annotate(trtp, implement, tuple.__class_getitem__(kernel_types))
    trtp.register(PLUGIN)(describe)
    trtp.autotune(PLUGIN)(tune)
    trtp.aot_impl(PLUGIN)(implement)


def launch_of(
    trt: Any, query: Any, key_value: Any, num_heads: int, always: int, tactic: int, capability: int
) -> CompiledAttention:
    """The kernel for TensorRT's descriptions of the inputs; raises ValueError for shapes that are not fixed."""
    if query.shape.is_dynamic or key_value.shape.is_dynamic:
        raise ExportError(f"{PLUGIN}: shapes {query.shape} and {key_value.shape} must be fixed")
    (batch, queries, width), (_, keys, _) = query.shape, key_value.shape
    shape = AttentionShape(
        batch=batch,
        queries=queries,
        keys=keys,
        width=width,
        heads=num_heads,
        always=always,
        dtype={trt.bfloat16: "bf16", trt.float16: "fp16"}.get(query.dtype, str(query.dtype)),
    )
    return compile_attention(shape, TACTICS[tactic], capability)


def _annotate(trtp: Any, function: Any, returned: Any) -> None:
    """Give a function the types that TensorRT reads from it, which exist only once it is imported."""
    tensor = trtp.TensorDesc
    types = {
        "query": tensor,
        "key_value": tensor,
        "lengths": tensor,
        "outputs": tuple.__class_getitem__(tensor),
    }
    types |= {"num_heads": int, "always": int, "source_hash": str, "tactic": int}
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    function.__annotations__ = {name: types[name] for name in names} | {"return": returned}
