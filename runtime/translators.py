"""The adapter that a command names: an engine through the best backend, or a checkpoint folder as it stands."""

from __future__ import annotations

from pathlib import Path

import torch

from foresight.adapters import Adapter, load_adapter
from foresight.models.stack import Stack
from foresight.runtime.backend import Backend
from foresight.runtime.backend_choice import open_backend
from foresight.runtime.config import BackendChoice
from foresight.runtime.errors import ReconstructError

__all__ = ["describe_translator", "load_translator"]


def load_translator(
    path: Path,
    stack: Stack,
    *,
    device: torch.device,
    dtype: torch.dtype,
    backend: BackendChoice | None = None,
    engine_sha256: str | None = None,
) -> Adapter | Backend:
    """Open an engine file or a checkpoint folder that was made for a stack.

    Raises ValueError (EngineError, AdapterError, ReconstructError) in one line: for what is not there, damaged or
    of another stack, and for a backend that cannot run.
    """
    if not path.exists():
        raise ReconstructError(f"{path}: there is no such engine or checkpoint folder")
    if not path.is_dir():
        from foresight.runtime.loading import untrained_adapter

        return open_backend(
            path,
            device=device,
            dtype=dtype,
            stack_fingerprint=stack.fingerprint,
            backend=backend,
            expected_sha256=engine_sha256,
            # A bare TensorRT plan does not say what it is.
            plan_config=untrained_adapter(stack, "conditioning").config,
        )
    if backend not in (None, "eager") or engine_sha256 is not None:
        raise ReconstructError(f"{path}: is a checkpoint folder; a backend or a SHA-256 is for an engine")
    return load_adapter(path, stack_fingerprint=stack.fingerprint, device=device, dtype=dtype)


def describe_translator(translator: Adapter | Backend) -> str:
    """What runs it, for `/v1/models` and the log."""
    return "eager" if isinstance(translator, Adapter) else str(translator.describe())
