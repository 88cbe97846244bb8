"""What can be compiled: for every target why it cannot be made here, and how it is."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from foresight.adapters import (
    EngineBucket,
    EngineHost,
    EngineTarget,
    MemberSource,
    open_onnx,
)
from foresight.adapters.packing import PACKED_ARCHITECTURES
from foresight.export.aoti import export_aoti
from foresight.export.fused import FusedAdapter
from foresight.export.onnx_file import export_onnx
from foresight.export.options import ExportOptions, TargetName
from foresight.export.parity import ParityCase, compare_outputs, measure_parity, parity_cases
from foresight.export.portable import PortableAdapter
from foresight.export.request import Request
from foresight.export.tensorrt_target import lacking_for_tensorrt, make_tensorrt
from foresight.export.trial import TrialError, try_package

__all__ = ["LeftOut", "Made", "Target", "target_makers"]

# With one of these a CPU multiplies in bfloat16, about twice as fast as in float32.
_BFLOAT16_INSTRUCTIONS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A target or member that the engine goes without, and why in half a sentence."""

    name: str
    reason: str


Made = MemberSource | LeftOut


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One target: `lacking` says what this machine lacks for it (None for nothing), `make` compiles."""

    lacking: Callable[[ExportOptions], str | None]
    make: Callable[[Request], Sequence[Made]]


def target_makers() -> Mapping[TargetName, Target]:
    """Every target by its name."""
    return {
        "onnx": Target(lacking=_lacking_for_onnx, make=_make_onnx),
        "cpu": Target(lacking=_lacking_for_cpu, make=_make_cpu),
        "cuda": Target(lacking=_lacking_for_cuda, make=_make_cuda),
        "tensorrt": Target(lacking=lacking_for_tensorrt, make=make_tensorrt),
    }


def _lacking_for_onnx(_options: ExportOptions) -> str | None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if not importlib.util.find_spec(name)]
    return f"{', '.join(missing)} not installed (foresight[onnx])" if missing else None


def _make_onnx(request: Request) -> list[MemberSource]:
    path = request.folder / "model.onnx"
    export_onnx(request.adapter, request.buckets[0], path)
    cases = parity_cases(request.adapter, request.buckets, static=False)
    parity = measure_parity(request.adapter, cases, open_onnx(path.read_bytes()))
    target = EngineTarget(kind="onnx")
    return [MemberSource(name=path.name, path=path, dtype="float32", target=target, parity=parity)]


def _lacking_for_cpu(_options: ExportOptions) -> str | None:
    return None if shutil.which("g++") or shutil.which("clang++") else "no C++ compiler found"


def _make_cpu(request: Request) -> list[Made]:
    members = [_cpu_member(request, "cpu.pt2", torch.float32)]
    if EngineHost.of("cpu").instructions & _BFLOAT16_INSTRUCTIONS:
        members.append(_cpu_member(request, "cpu-bfloat16.pt2", torch.bfloat16))
    return members


def _cpu_member(request: Request, name: str, dtype: torch.dtype) -> Made:
    path, device = request.folder / name, torch.device("cpu")
    module = PortableAdapter(request.adapter).to(dtype)
    export_aoti(module, request.adapter, request.buckets[0], path, dtype=dtype)
    cases = parity_cases(request.adapter, request.buckets, static=False)
    host = EngineHost.of(device)
    target = EngineTarget(
        kind="aoti",
        device="cpu",
        architecture=host.machine,
        capability=" ".join(sorted(host.instructions)),
        runtime=host.torch_version,
    )
    return _tried(request, path, cases, target, dtype, device)


def _lacking_for_cuda(options: ExportOptions) -> str | None:
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    return _lacking_for_cpu(options)


def _make_cuda(request: Request) -> list[Made]:
    device = torch.device("cuda", torch.cuda.current_device())
    if request.adapter.config.architecture not in PACKED_ARCHITECTURES:
        portable = PortableAdapter(request.adapter).to(device, request.gpu_dtype)
        return [_cuda_member(request, portable, None)]
    # The fused kernels' launches are chosen by shape, so that every bucket has a package of its own.
    module = FusedAdapter(request.adapter, request.gpu_dtype).to(device)
    return [_cuda_member(request, module, bucket) for bucket in request.buckets]


def _cuda_member(request: Request, module: nn.Module, bucket: EngineBucket | None) -> Made:
    device = torch.device("cuda", torch.cuda.current_device())
    host, dtype, static = EngineHost.of(device), request.gpu_dtype, bucket is not None
    stem = f"cuda-{host.gpu}"
    path = request.folder / (f"{stem}.pt2" if bucket is None else request.name(stem, bucket, ".pt2"))
    buckets = request.buckets if bucket is None else [bucket]
    export_aoti(module, request.adapter, buckets[0], path, dtype=dtype, static=static)
    cases = parity_cases(request.adapter, buckets, static=static)
    target = EngineTarget(
        kind="aoti", device="cuda", architecture=host.gpu, runtime=host.torch_version, bucket=bucket
    )
    return _tried(request, path, cases, target, dtype, device)


def _tried(
    request: Request,
    path: Path,
    cases: Sequence[ParityCase],
    target: EngineTarget,
    dtype: torch.dtype,
    device: torch.device,
) -> Made:
    try:
        outputs = try_package(path, [case.inputs(dtype) for case in cases], device)
    except TrialError as error:
        return LeftOut(name=path.name, reason=str(error))
    parity = compare_outputs(request.adapter, cases, outputs, dtype=dtype, device=device)
    kind = str(dtype).removeprefix("torch.")
    return MemberSource(name=path.name, path=path, dtype=kind, target=target, parity=parity)
