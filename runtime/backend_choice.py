"""From an engine file to the best backend that this machine can run, with a reason for each it cannot."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import get_args

import torch

from foresight.adapters import (
    ENGINE_INPUTS,
    ENGINE_OUTPUT,
    WEIGHTS,
    AdapterConfig,
    EngineBucket,
    EngineDamagedError,
    EngineError,
    EngineFile,
    EngineHost,
    EngineMember,
    TensorRTPlan,
    cuda_driver_refusal,
    find_tensorrt,
    is_engine_archive,
    load_engine_adapter,
    read_bare_plan,
)
from foresight.runtime.backend import BACKENDS, Backend, BackendName
from foresight.runtime.backend_compiled import CompiledBackend, open_compiled
from foresight.runtime.backend_weights import EagerBackend, FusedBackend, fused_refusal

__all__ = ["check_plan_device", "first_that_runs", "open_backend"]

_LOG = logging.getLogger(__name__)
# As measured (bench/backends.py), on a CPU with threads that wait as the commands' do. TensorRT is not measured; its
# plan was tuned for that GPU.
_ORDER: Mapping[str, tuple[BackendName, ...]] = {
    "cuda": ("tensorrt", "fused", "aoti", "eager"),
    "cpu": ("aoti", "onnx", "fused", "eager"),
}


def open_backend(
    path: str | Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    stack_fingerprint: str,
    backend: BackendName | None = None,
    expected_sha256: str | None = None,
    plan_config: AdapterConfig | None = None,
    shape: EngineBucket | None = None,
) -> Backend:
    """The backend of an engine, prepared: the best that can run here, or the one that is named.

    `dtype` is what the pipeline computes in; a compiled member of another one is only taken when its backend is
    named. A bare TensorRT plan is taken as an adapter of `plan_config`. The fused kernels, which the weights alone
    suffice for, are prepared for `shape` in place of the engine's buckets. The choice is logged in one line. Raises
    EngineError, one line: for an engine that is damaged or of another stack, and for a named backend that cannot run.
    """
    if backend is not None and backend not in get_args(BackendName):
        raise EngineError(f"backend {backend!r}: must be one of {', '.join(BACKENDS)}")
    if not is_engine_archive(path):
        return _logged(_open_bare_plan(Path(path), device, backend, expected_sha256, plan_config), path, [])
    with EngineFile(path, expected_sha256=expected_sha256) as engine:
        engine.check_stack(stack_fingerprint)
        engine.verify()
        buckets = engine.manifest.buckets if shape is None else (shape,)

        def opened(name: BackendName) -> Backend:
            return _open(name, engine, device, dtype, buckets, named=backend is not None)

        return first_that_runs(path, (backend,) if backend else _ORDER[device.type], opened)


def check_plan_device(path: str | Path, device: torch.device) -> None:
    """Raise EngineError, one line, where `device` runs no bare TensorRT plan; nothing of the file is read."""
    refusal = _tensorrt_refusal(device)
    if refusal is not None:
        raise EngineError(f"{path}: is no engine with a manifest; as a bare TensorRT plan: {refusal}")


def first_that_runs(
    what: str | Path, names: Sequence[BackendName], opened: Callable[[BackendName], Backend]
) -> Backend:
    """The first of the backends that `opened` makes and that can be prepared, which is logged in one line.

    Raises EngineError, one line, where none of them runs `what`, and EngineDamagedError as soon as one does.
    """
    reasons: list[str] = []
    for name in names:
        try:
            chosen = opened(name)
            chosen.prepare()
        except EngineDamagedError:
            raise
        except EngineError as error:
            reasons.append(f"{name}: {str(error).removeprefix(f'{what}: ')}")
            continue
        return _logged(chosen, what, reasons)
    raise EngineError(f"{what}: cannot be run here ({'; '.join(reasons)})")


def _logged(backend: Backend, what: str | Path, reasons: list[str]) -> Backend:
    passed_over = f"; passed over {'; '.join(reasons)}" if reasons else ""
    _LOG.info("%s: backend %s%s", what, backend.describe(), passed_over)
    return backend


def _open(
    name: BackendName,
    engine: EngineFile,
    device: torch.device,
    dtype: torch.dtype,
    buckets: tuple[EngineBucket, ...],
    *,
    named: bool,
) -> Backend:
    config = engine.manifest.adapter
    if name == "eager":
        return EagerBackend(load_engine_adapter(engine, device=device, dtype=dtype), member=WEIGHTS)
    if name == "fused":
        refusal = fused_refusal(config)
        if refusal is not None:
            raise EngineError(refusal)
        # In fp32, because the kernels' form is folded from them and rounded once.
        adapter = load_engine_adapter(engine)
        return FusedBackend(adapter, device, dtype, buckets, member=WEIGHTS)
    members = _usable_members(name, engine, device)
    kind = str(dtype).removeprefix("torch.")
    fitting = [member for member in members if member.dtype == kind]
    if not fitting and not named:
        # A CPU's bfloat16 is quicker than the best that float32 can be compiled to.
        raise EngineError(f"{members[0].name} is {members[0].dtype}, the other models compute in {kind}")
    others = [member for member in members if member.dtype == members[0].dtype]
    return open_compiled(name, engine, fitting or others, device)


def _usable_members(name: BackendName, engine: EngineFile, device: torch.device) -> list[EngineMember]:
    host = EngineHost.of(device)
    if name == "tensorrt":
        refusal = _tensorrt_refusal(device)
        if refusal is not None:
            raise EngineError(refusal)
    if name == "onnx" and device.type == "cuda":
        raise EngineError("ONNX Runtime serves CPUs here")
    usable, reasons = [], []
    for member in engine.manifest.members:
        if member.target.kind == name:
            refusal = host.refusal(member.target)
            if refusal is None:
                usable.append(member)
            else:
                reasons.append(f"{member.name} {refusal}")
    if not usable:
        raise EngineError("; ".join(reasons) or "the engine has no such member")
    return usable


def _tensorrt_refusal(device: torch.device) -> str | None:
    if device.type != "cuda":
        return "TensorRT needs a GPU"
    # Asked of the driver before anything of TensorRT is imported, let alone made.
    driver = cuda_driver_refusal()
    if driver is not None:
        return f"TensorRT cannot be used: {driver}"
    return None if find_tensorrt() else "TensorRT is not installed (foresight[tensorrt])"


def _open_bare_plan(
    path: Path,
    device: torch.device,
    backend: BackendName | None,
    expected_sha256: str | None,
    config: AdapterConfig | None,
) -> Backend:
    if backend not in (None, "tensorrt"):
        raise EngineError(f"{path}: is a bare TensorRT plan, the backend {backend} has nothing to run in it")
    if config is None:
        raise EngineError(
            f"{path}: is neither an engine nor, without an adapter to stand for, a TensorRT plan"
        )
    check_plan_device(path, device)
    content = read_bare_plan(path, expected_sha256=expected_sha256)
    try:
        plan = TensorRTPlan(content, device)
    except EngineError as error:
        raise EngineError(f"{path}: {error}") from error
    chosen = CompiledBackend(
        "tensorrt",
        config,
        {_plan_bucket(path, plan, config): plan},
        member=path.name,
        device=device,
        dtype=plan.dtypes[ENGINE_INPUTS[0]],
        example=_plan_bucket(path, plan, config),
    )
    chosen.prepare()
    return chosen


def _plan_bucket(path: Path, plan: TensorRTPlan, config: AdapterConfig) -> EngineBucket:
    vlm, dino = (plan.shapes[name] for name in ENGINE_INPUTS[:2])
    output = plan.shapes[ENGINE_OUTPUT]
    expected = (
        (config.num_queries, config.output_dim)
        if config.output_grid is None
        else (config.output_dim, *config.output_grid)
    )
    if (vlm[2:], dino[2:], output[1:]) != ((config.vlm_dim,), (config.dino_dim,), expected):
        raise EngineError(
            f"{path}: the plan maps {vlm} and {dino} to {output}, which is not this stack's adapter"
        )
    return EngineBucket(batch=vlm[0], vlm_tokens=vlm[1], dino_tokens=dino[1])
