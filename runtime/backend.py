"""What runs an adapter is to the pipeline: called like the adapter, whatever it was compiled to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, get_args, runtime_checkable

import torch
from torch import Tensor

from foresight.adapters import AdapterConfig, EngineBucket, Grid
from foresight.runtime.config import BackendChoice

__all__ = ["BACKENDS", "Backend", "BackendDescription", "BackendName"]

BackendName = BackendChoice
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)
"""Every backend; `backend_choice` says in which order they are tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendDescription:
    """What a backend is: `buckets` are the only shapes that it takes, `member` is what it runs of an engine."""

    name: BackendName
    device: str
    dtype: str
    member: str = ""
    buckets: tuple[EngineBucket, ...] = ()
    detail: str = ""

    def __str__(self) -> str:
        parts = (self.member, f"{self.dtype} on {self.device}", self.detail)
        return f"{self.name} ({', '.join(part for part in parts if part)})"


@runtime_checkable
class Backend(Protocol):
    """An adapter that is ready to run on `device`; it takes contiguous features of `dtype`."""

    config: AdapterConfig
    device: torch.device
    dtype: torch.dtype

    def prepare(self) -> None:
        """Do now what the first call would otherwise wait for; raises ValueError if the backend cannot run."""

    def __call__(
        self,
        vlm_hidden_states: Tensor,
        dino_hidden_states: Tensor,
        *,
        vlm_grid: Grid | None = None,
        dino_grid: Grid | None = None,
        vlm_lengths: Tensor | None = None,
    ) -> Tensor:
        """Translate as `Adapter.forward` does; on CUDA the result may be overwritten by the next call."""

    def close(self) -> None:
        """Let go of what the backend holds; it cannot be called afterwards."""

    def describe(self) -> BackendDescription:
        """What this backend is, for the log and the report."""
