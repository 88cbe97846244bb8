"""The adapter that a command names: an engine or a checkpoint folder, through the best backend."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from foresight.adapters import (
    AdapterConfig,
    EngineBucket,
    EngineFile,
    is_engine_archive,
    load_adapter,
    read_adapter_config,
)
from foresight.models.stack import Stack
from foresight.runtime.adapter_choice import run_adapter
from foresight.runtime.backend import Backend
from foresight.runtime.backend_choice import open_backend
from foresight.runtime.config import BackendChoice, Mode
from foresight.runtime.errors import ReconstructError

__all__ = ["check_adapter", "load_translator", "stack_shape"]


def load_translator(
    path: Path,
    stack: Stack,
    *,
    device: torch.device,
    dtype: torch.dtype,
    plan_config: AdapterConfig,
    backend: BackendChoice | None = None,
    engine_sha256: str | None = None,
) -> Backend:
    """Open an engine file or a checkpoint folder that was made for a stack.

    A bare TensorRT plan, which does not say what it is, is taken as an adapter of `plan_config`. Raises ValueError
    (EngineError, AdapterError, ReconstructError) in one line: for what is damaged or of another stack, and for a
    backend that cannot run.
    """
    if not path.is_dir():
        return open_backend(
            path,
            device=device,
            dtype=dtype,
            stack_fingerprint=stack.fingerprint,
            backend=backend,
            expected_sha256=engine_sha256,
            plan_config=plan_config,
            shape=stack_shape(stack),
        )
    if engine_sha256 is not None:
        raise ReconstructError(f"{path}: is a checkpoint folder; a SHA-256 is for an engine")
    adapter, shape = load_adapter(path, stack_fingerprint=stack.fingerprint), stack_shape(stack)
    return run_adapter(adapter, str(path), device=device, dtype=dtype, shape=shape, backend=backend)


def check_adapter(path: Path, mode: Mode | None) -> None:
    """Raise ValueError, one line, unless there is an adapter at `path`, made for `mode` where that is not None."""
    if not path.exists():
        raise ReconstructError(f"{path}: there is no such engine or checkpoint folder")
    if mode is None:
        return
    made_for = "conditioning"  # What a bare TensorRT plan is taken for.
    if path.is_dir():
        made_for = read_adapter_config(path).mode
    elif is_engine_archive(path):
        with EngineFile(path) as engine:
            made_for = engine.manifest.adapter.mode
    if made_for != mode:
        raise ReconstructError(f"mode {mode!r}: {path} was made for {made_for!r}; leave --mode out")


def stack_shape(stack: Stack) -> EngineBucket:
    """One clip, and the numbers of tokens that a stack's encoders make of it."""
    vlm_tokens, dino_tokens = (math.prod(each.token_grid) for each in (stack.vlm, stack.dino))
    return EngineBucket(batch=1, vlm_tokens=vlm_tokens, dino_tokens=dino_tokens)
