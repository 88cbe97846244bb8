"""The backends that need nothing but an adapter's weights: the fused kernels, and eager PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from foresight.adapters import Adapter, AdapterConfig, EngineBucket, EngineError, Grid
from foresight.adapters.packing import PACKED_ARCHITECTURES
from foresight.runtime.backend import BackendDescription
from foresight.runtime.device import is_device_fault
from foresight.runtime.prepared import PreparedAdapter, prepare

__all__ = ["EagerBackend", "FusedBackend", "fused_refusal"]

_LONGEST_REASON = 200


class EagerBackend:
    """The adapter itself; on CUDA and on the CPU, for every architecture and shape.

    `member` is what of an engine its weights are.
    """

    def __init__(self, adapter: Adapter, *, member: str = "") -> None:
        parameter = next(adapter.parameters())
        self.config, self.device, self.dtype = adapter.config, parameter.device, parameter.dtype
        self._adapter: Adapter | None = adapter
        self._member = member

    def prepare(self) -> None:
        """Nothing is left to do."""

    @torch.inference_mode()
    def __call__(
        self,
        vlm_hidden_states: Tensor,
        dino_hidden_states: Tensor,
        *,
        vlm_grid: Grid | None = None,
        dino_grid: Grid | None = None,
        vlm_lengths: Tensor | None = None,
    ) -> Tensor:
        """Translate as `Adapter.forward` does."""
        if self._adapter is None:
            raise ValueError("backend eager: is closed")
        output: Tensor = self._adapter(
            vlm_hidden_states,
            dino_hidden_states,
            vlm_grid=vlm_grid,
            dino_grid=dino_grid,
            vlm_lengths=vlm_lengths,
        )
        return output

    def close(self) -> None:
        """Drop the adapter."""
        self._adapter = None

    def describe(self) -> BackendDescription:
        """What this backend is."""
        dtype = str(self.dtype).removeprefix("torch.")
        return BackendDescription(name="eager", member=self._member, device=str(self.device), dtype=dtype)


class FusedBackend:
    """The adapter on the project's kernels, prepared for the buckets; one launch or graph replay a call on a GPU.

    `adapter` has its weights in fp32 and on the CPU, from where they are packed for `device`. `member` is what
    of an engine they are. Raises EngineError for an architecture, dtype or bucket that the kernels do not serve,
    and where they cannot be compiled.
    """

    def __init__(
        self,
        adapter: Adapter,
        device: torch.device,
        dtype: torch.dtype,
        buckets: tuple[EngineBucket, ...],
        *,
        member: str = "",
    ) -> None:
        self.config: AdapterConfig = adapter.config
        self.device, self.dtype, self._member = device, dtype, member
        # Prepared for one number of clips and one of DINO's tokens: those of the smallest bucket.
        first = min(buckets)
        alike = [
            each for each in buckets if (each.batch, each.dino_tokens) == (first.batch, first.dino_tokens)
        ]
        try:
            # One replica: a command and a server call from one thread, on one stream; another stream is refused.
            self._prepared: PreparedAdapter | None = prepare(
                adapter,
                device,
                dtype,
                sorted({each.vlm_tokens for each in alike}),
                dino_tokens=first.dino_tokens,
                batch=first.batch,
            )
        # Compiling kernels fails in many ways (no C compiler, a GPU that is too old), each with an error of its own.
        except Exception as error:
            if is_device_fault(error):
                raise
            raise EngineError(f"the fused kernels cannot serve it: {_reason(error)}") from error
        self._path = self._prepared.report().path

    def prepare(self) -> None:
        """Nothing is left to do: kernels are compiled and graphs captured when the backend is made."""

    def __call__(
        self,
        vlm_hidden_states: Tensor,
        dino_hidden_states: Tensor,
        *,
        vlm_grid: Grid | None = None,
        dino_grid: Grid | None = None,
        vlm_lengths: Tensor | None = None,
    ) -> Tensor:
        """Translate; on CUDA the result is a buffer that the next call on this stream overwrites."""
        if self._prepared is None:
            raise ValueError("backend fused: is closed")
        return self._prepared(
            vlm_hidden_states,
            dino_hidden_states,
            vlm_grid=vlm_grid,
            dino_grid=dino_grid,
            vlm_lengths=vlm_lengths,
        )

    def close(self) -> None:
        """Drop the packed weights, buffers and graphs."""
        self._prepared = None

    def describe(self) -> BackendDescription:
        """What this backend is."""
        dtype = str(self.dtype).removeprefix("torch.")
        return BackendDescription(
            name="fused", member=self._member, device=str(self.device), dtype=dtype, detail=self._path
        )


def fused_refusal(config: AdapterConfig) -> str | None:
    """Why the fused kernels do not serve an adapter, in half a sentence; None if they do."""
    if config.architecture not in PACKED_ARCHITECTURES:
        return f"there are no fused kernels for the architecture {config.architecture}"
    return None


def _reason(error: Exception) -> str:
    # Triton's messages quote whole kernels.
    message = " ".join(str(error).split())[:_LONGEST_REASON]
    return message if isinstance(error, ValueError) else f"{type(error).__name__}: {message}"
