"""What the user of `foresight-export` can choose; knows no model and imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

__all__ = ["TARGETS", "ExportOptions", "TargetName"]

TargetName = Literal["onnx", "cpu", "cuda", "tensorrt"]
TARGETS: tuple[TargetName, ...] = ("onnx", "cpu", "cuda", "tensorrt")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """Compile an adapter's checkpoint into one engine file."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """The folder of the checkpoint (config.json and model.safetensors)."""

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="ADAPTER.engine")]
    """Where the engine goes."""

    targets: tuple[TargetName, ...] = ()
    """What to compile for; all that this machine can make unless named. The weights are always in."""

    stack: Annotated[str, tyro.conf.arg(metavar="nano|full|FOLDER")] = "nano"
    """The stack whose encoders' token numbers are compiled for."""

    buckets: Annotated[tuple[str, ...], tyro.conf.arg(metavar="BATCHxVLMxDINO ...")] = ()
    """Shapes to compile for, such as 1x1536x256, in place of the stack's own."""

    gpu_dtype: Literal["bfloat16", "float16"] = "bfloat16"
    """What GPUs compute in; CPUs compute in float32."""

    tensorrt_plugins: Literal["on", "off"] = "on"
    """Whether attention in TensorRT plans is this project's own kernel, or TensorRT's."""

    tensorrt_frontend: Literal["onnx", "torch"] = "onnx"
    """What hands the network to TensorRT: its ONNX parser, or torch-tensorrt (without plugins)."""

    tensorrt_version_compatible: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Build plans that other versions of TensorRT and its lean runtime read."""

    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace the output if it exists."""
