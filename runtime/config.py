"""What a pipeline does with every chunk, as one value; knows no model and imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["BackendChoice", "Mode", "OutputSize", "PipelineConfig"]

Mode = Literal["conditioning", "latent"]
OutputSize = Literal["source", "model"]
BackendChoice = Literal["tensorrt", "fused", "aoti", "onnx", "eager"]
"""What can run an engine; `foresight.runtime.backend_choice` says in which order they are tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineConfig:
    """What to do with every chunk of a clip.

    `mode` says what the adapter speaks to: "conditioning" to the transformer, which then denoises in `steps`
    Euler steps from noise of `seed`, "latent" straight to the video decoder. `size` is that of the output:
    "source", or "model" for the picture inside the model's frame. `in_flight` chunks at most are on the
    device before the first of them is waited for (a CPU finishes one before it begins the next). Raises
    ValueError.
    """

    mode: Mode = "conditioning"
    steps: int = 4
    seed: int = 0
    size: OutputSize = "source"
    in_flight: int = 2

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode {self.mode!r}: must be one of {', '.join(get_args(Mode))}")
        if self.size not in get_args(OutputSize):
            raise ValueError(f"size {self.size!r}: must be one of {', '.join(get_args(OutputSize))}")
        if self.steps < 1:
            raise ValueError(f"steps {self.steps}: must be at least 1")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed {self.seed}: must be from 0 to 2^63 - 1")
        if self.in_flight < 1:
            raise ValueError(f"in_flight {self.in_flight}: must be at least 1 chunk")
