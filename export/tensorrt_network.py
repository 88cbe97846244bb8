"""The network that TensorRT compiles: the adapter as ONNX of fixed shapes, attention as plugin nodes or plain."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from foresight.adapters import Adapter, EngineBucket
from foresight.export.attention import plain_attention, replace_attention
from foresight.export.onnx_file import trace_onnx
from foresight.export.parity import example_inputs
from foresight.export.portable import PortableAdapter

__all__ = ["export_network", "plugin_attention"]


def export_network(
    adapter: Adapter, bucket: EngineBucket, path: Path, *, dtype: torch.dtype, plugins: bool
) -> None:
    """Write the ONNX file of one bucket, features and products in `dtype`.

    With `plugins` every attention is a node of the domain `foresight`, which only TensorRT with this
    project's plugin reads.
    """
    portable = PortableAdapter(adapter).to(dtype)
    attend = plugin_attention if plugins else plain_attention
    replace_attention(portable, self_attend=attend, cross_attend=attend)
    versions = {"foresight": 1} if plugins else {}
    trace_onnx(
        portable, example_inputs(adapter, bucket, dtype), path, dynamic=False, custom_opsets=versions or None
    )


def plugin_attention(query: Tensor, key_value: Tensor, num_heads: int, mask: Tensor | None) -> Tensor:
    """Attention as a node that stands for the plugin `foresight::attention`; traced only.

    `mask` [B, K] must be true up to each row's length and false after it, which the plugin gets as numbers.
    """
    from foresight.export.attention_ptx import source_hash

    batch = query.shape[0]
    if mask is None:
        always, lengths = key_value.shape[1], torch.zeros(batch, dtype=torch.int32, device=query.device)
    else:
        always, lengths = 0, mask.sum(1).to(torch.int32)
    return torch.onnx.ops.symbolic(
        "foresight::attention",
        (query.contiguous(), key_value.contiguous(), lengths),
        {
            "num_heads": num_heads,
            "always": int(always),
            "source_hash": source_hash(),
            "plugin_namespace": "foresight",
            "plugin_version": "1",
            "aot": 1,
        },
        dtype=query.dtype,
        shape=query.shape,
        version=1,
    )
