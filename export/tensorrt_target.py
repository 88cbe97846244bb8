"""TensorRT plans of an adapter, one of fixed shape for every bucket.

TensorRT's builder was not at hand where this was written: what is checked is that its own registration code
takes the plugin, that the kernel compiles, and that the ONNX files are sound.
"""

from __future__ import annotations

import importlib.util
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from foresight.adapters import (
    EngineBucket,
    EngineHost,
    EngineTarget,
    MemberSource,
    TensorRTPlan,
    cuda_driver_refusal,
    tensorrt_version,
)
from foresight.export.errors import ExportError
from foresight.export.options import ExportOptions
from foresight.export.parity import example_inputs, measure_parity, parity_cases
from foresight.export.portable import PortableAdapter
from foresight.export.request import Request
from foresight.export.tensorrt_network import export_network

__all__ = ["build_plan", "lacking_for_tensorrt", "make_tensorrt"]

_WORKSPACE_BYTES = 2**30


def lacking_for_tensorrt(options: ExportOptions) -> str | None:
    """What this machine lacks to build plans, in half a sentence; imports nothing of TensorRT."""
    driver = cuda_driver_refusal()
    if driver is not None:
        return driver
    torch_frontend = options.tensorrt_frontend == "torch"
    needed = ("torch_tensorrt",) if torch_frontend else ("tensorrt", "onnx", "onnxscript")
    extra = "torch-tensorrt" if torch_frontend else "tensorrt"
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    return f"{', '.join(missing)} not installed (foresight[{extra}])" if missing else None


def make_tensorrt(request: Request) -> list[MemberSource]:
    """Build, run and measure the plans of all buckets."""
    return [_make_plan(request, bucket) for bucket in request.buckets]


def _make_plan(request: Request, bucket: EngineBucket) -> MemberSource:
    options, dtype = request.options, request.gpu_dtype
    device = torch.device("cuda", torch.cuda.current_device())
    host, version = EngineHost.of(device), tensorrt_version()
    if options.tensorrt_frontend == "torch":
        plan = _convert_with_torch(request, bucket, device)
    else:
        plugins = options.tensorrt_plugins == "on"
        network = request.folder / request.name("tensorrt", bucket, ".onnx")
        export_network(request.adapter, bucket, network, dtype=dtype, plugins=plugins)
        if plugins:
            from foresight.export.tensorrt_plugin import register_plugin

            register_plugin(int(host.gpu.removeprefix("sm_")))
        plan = build_plan(network, version_compatible=options.tensorrt_version_compatible)
    path = request.folder / request.name(f"tensorrt-{version}-{host.gpu}", bucket, ".plan")
    path.write_bytes(plan)
    cases = parity_cases(request.adapter, [bucket], static=True)
    target = EngineTarget(
        kind="tensorrt",
        device="cuda",
        architecture=host.gpu,
        runtime=version,
        bucket=bucket,
        version_compatible=options.tensorrt_version_compatible,
    )
    return MemberSource(
        name=path.name,
        path=path,
        dtype=options.gpu_dtype,
        target=target,
        parity=measure_parity(request.adapter, cases, TensorRTPlan(plan, device), dtype=dtype, device=device),
    )


def build_plan(network: Path, *, version_compatible: bool) -> bytes:
    """Compile an ONNX file as a strongly typed network; raises ExportError with TensorRT's own words."""
    trt = import_module("tensorrt")
    log = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(log)
    definition = builder.create_network(_strongly_typed(trt))
    parser = trt.OnnxParser(definition, log)
    if not parser.parse(network.read_bytes()):
        reasons = "; ".join(str(parser.get_error(index).desc()) for index in range(parser.num_errors))
        raise ExportError(f"TensorRT {trt.__version__} cannot read the network: {reasons}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, _WORKSPACE_BYTES)
    if version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    plan = builder.build_serialized_network(definition, config)
    if plan is None:
        raise ExportError(f"TensorRT {trt.__version__} cannot build the network, its log above says why")
    return bytes(plan)


def _strongly_typed(trt: Any) -> int:
    # From TensorRT 11 on every network is, and the flag is gone.
    flags = getattr(trt, "NetworkDefinitionCreationFlag", None)
    strongly_typed = getattr(flags, "STRONGLY_TYPED", None)
    return 0 if strongly_typed is None else 1 << int(strongly_typed)


def _convert_with_torch(request: Request, bucket: EngineBucket, device: torch.device) -> bytes:
    """The plan that torch-tensorrt makes of the exported program; without plugins."""
    torch_tensorrt = import_module("torch_tensorrt")
    module = PortableAdapter(request.adapter).to(device, request.gpu_dtype)
    inputs = tuple(each.to(device) for each in example_inputs(request.adapter, bucket, request.gpu_dtype))
    with torch.no_grad():
        program = torch.export.export(module, inputs)
    plan = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
        program,
        arg_inputs=list(inputs),
        use_explicit_typing=True,
        require_full_compilation=True,
        version_compatible=request.options.tensorrt_version_compatible,
        workspace_size=_WORKSPACE_BYTES,
    )
    return bytes(plan)
