"""What a pipeline does with every chunk, as one value; knows no model and imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from foresight.runtime.errors import ReconstructError

__all__ = ["BackendChoice", "Mode", "OutputSize", "PipelineConfig", "check_backend"]

Mode = Literal["conditioning", "latent"]
OutputSize = Literal["source", "model"]
BackendChoice = Literal["tensorrt", "fused", "aoti", "onnx", "eager"]
"""What can run an adapter; `foresight.runtime.backend_choice` says in which order they are tried."""
_FROM_WEIGHTS: tuple[BackendChoice, ...] = ("fused", "eager")


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineConfig:
    """What to do with every chunk of a clip.

    `mode` says what the adapter speaks to: "conditioning" to the transformer, which then denoises in `steps`
    Euler steps from noise of `seed`, "latent" straight to the video decoder. `size` is that of the output:
    "source", or "model" for the picture inside the model's frame. Raises ValueError.
    """

    mode: Mode = "conditioning"
    steps: int = 4
    seed: int = 0
    size: OutputSize = "source"

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode {self.mode!r}: must be one of {', '.join(get_args(Mode))}")
        if self.size not in get_args(OutputSize):
            raise ValueError(f"size {self.size!r}: must be one of {', '.join(get_args(OutputSize))}")
        if self.steps < 1:
            raise ValueError(f"steps {self.steps}: must be at least 1")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed {self.seed}: must be from 0 to 2^63 - 1")


def check_backend(backend: BackendChoice | None, adapter: Path | None) -> None:
    """Raise ReconstructError for a backend that runs what only an engine holds, where `adapter` is none."""
    if backend is None or backend in _FROM_WEIGHTS:
        return
    if adapter is None:
        raise ReconstructError(f"backend {backend!r}: runs an engine; give one with --adapter")
    if adapter.is_dir():
        others = " or ".join(_FROM_WEIGHTS)
        raise ReconstructError(
            f"backend {backend!r}: runs an engine, {adapter} is a checkpoint folder ({others})"
        )
