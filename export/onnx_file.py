"""The adapter as an ONNX file of plain operators, for ONNX Runtime and whatever else reads ONNX."""

from __future__ import annotations

import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foresight.adapters import ENGINE_INPUTS, ENGINE_OUTPUT, Adapter, EngineBucket
from foresight.export.attention import plain_attention, replace_attention
from foresight.export.parity import example_inputs
from foresight.export.portable import PortableAdapter

__all__ = ["ONNX_OPSET", "check_onnx", "export_onnx", "trace_onnx"]

# The newest operator set without an Attention operator, which ONNX Runtime and TensorRT each read in a way of
# their own.
ONNX_OPSET = 22


def export_onnx(adapter: Adapter, bucket: EngineBucket, path: Path) -> None:
    """Write `adapter` (fp32, on the CPU) with dynamic batch and numbers of tokens, and check the file.

    `bucket` only sizes the example that is traced. Raises what onnx's checker raises.
    """
    portable = PortableAdapter(adapter)
    replace_attention(portable, self_attend=plain_attention, cross_attend=plain_attention)
    # A dimension of 1 would be frozen.
    example = EngineBucket(
        batch=max(2, bucket.batch),
        vlm_tokens=max(4, bucket.vlm_tokens),
        dino_tokens=max(4, bucket.dino_tokens),
    )
    trace_onnx(portable, example_inputs(adapter, example, torch.float32), path, dynamic=True)
    check_onnx(path)


def trace_onnx(
    module: nn.Module, inputs: tuple[Tensor, ...], path: Path, *, dynamic: bool, **options: Any
) -> None:
    """Write `module` as ONNX; `options` go to `torch.onnx.export`."""
    batch, vlm, dino = (torch.export.Dim(name) for name in ("batch", "vlm_tokens", "dino_tokens"))
    shapes = ({0: batch, 1: vlm}, {0: batch, 1: dino}, None, None, {0: batch})
    with warnings.catch_warnings():
        # torch's exporter calls its own deprecated functions.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            inputs,
            dynamo=True,
            opset_version=ONNX_OPSET,
            dynamic_shapes=shapes if dynamic else None,
            input_names=list(ENGINE_INPUTS),
            output_names=[ENGINE_OUTPUT],
            verbose=False,
            **options,
        )
        if program is None:
            raise RuntimeError("torch.onnx.export returned nothing")
        _save(program.model_proto, path)


def _save(model: Any, path: Path) -> None:
    """Write the model without the notes of its tracing, which hold this machine's paths."""
    del model.metadata_props[:]
    graph = model.graph
    for each in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del each.metadata_props[:]
        each.ClearField("doc_string")
    path.write_bytes(model.SerializeToString())


def check_onnx(path: Path) -> None:
    """Run onnx's checker and its shape inference in strict mode on a file of standard operators."""
    import_module("onnx.checker").check_model(path, full_check=True)
