"""From an adapter's weights to what runs them: the fused kernels on a GPU that they serve, else eager PyTorch."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from foresight.adapters import Adapter, EngineBucket
from foresight.runtime.backend import Backend, BackendName
from foresight.runtime.backend_choice import first_that_runs
from foresight.runtime.backend_weights import EagerBackend, FusedBackend

__all__ = ["run_adapter"]

# On a CPU the packed weights run by name alone: inside the pipeline, beside its other threads, eager was as quick.
_ORDER: Mapping[str, tuple[BackendName, ...]] = {"cuda": ("fused", "eager"), "cpu": ("eager",)}


def run_adapter(
    adapter: Adapter,
    name: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    shape: EngineBucket,
    backend: BackendName | None = None,
) -> Backend:
    """The backend of an adapter without an engine: the best that can run here, or the one that is named.

    `adapter` comes in fp32 and on the CPU, because packing folds its weights and rounds them once; it belongs to the
    backend from here on. `shape` is what the pipeline gives it. Where there was a choice it is logged in one line,
    after `name`. Raises EngineError, one line, for a named backend that cannot run.
    """

    def opened(name: BackendName) -> Backend:
        if name == "fused":
            return FusedBackend(adapter, device, dtype, (shape,))
        return EagerBackend(adapter.to(device, dtype))

    names = (backend,) if backend else _ORDER[device.type]
    if names == ("eager",):
        return opened("eager")
    return first_that_runs(name, names, opened)
