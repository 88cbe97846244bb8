"""What the user of `foresight-reconstruct` can choose; knows no model and imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from foresight.runtime.config import BackendChoice, Mode, OutputSize

__all__ = ["ReconstructOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconstructOptions:
    """Reconstruct a video clip from what two vision encoders see of it."""

    clip: Annotated[Path, tyro.conf.Positional]
    """The clip to reconstruct (mp4, mov, webm, mkv)."""

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="OUT.mp4")]
    """Where the reconstruction goes, an h264 mp4 with the clip's sound."""

    compare: Annotated[Path | None, tyro.conf.arg(metavar="SIDE_BY_SIDE.mp4")] = None
    """Also write a video of the clip and its reconstruction side by side."""

    report: Annotated[Path | None, tyro.conf.arg(metavar="REPORT.json")] = None
    """Also write what was measured: quality, time of every stage, memory, versions."""

    mode: Mode | None = None
    """How the adapter speaks to the decoder: through the denoising transformer (conditioning, the default), or in
    latents; an --adapter says so itself."""

    stack: Annotated[str, tyro.conf.arg(metavar="nano|full|FOLDER")] = "nano"
    """Which frozen models to use: the embedded small ones, the full-size ones, or those in a folder."""

    adapter: Annotated[Path | None, tyro.conf.arg(metavar="ADAPTER.engine|FOLDER")] = None
    """An engine file or a checkpoint folder in the place of the stack's own adapter."""

    backend: BackendChoice | None = None
    """What runs the adapter; by default the best that can here. Without an engine: fused or eager."""

    random_weights: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Do not load weights but draw them at random: right timings, meaningless pictures."""

    steps: int = 4
    """Denoising steps a chunk (conditioning mode only)."""

    seed: int = 0
    """Seed of the noise; the same clip, seed and machine give the same frames."""

    size: OutputSize = "source"
    """Size of the output: the clip's own, or that of the models."""

    device: Annotated[str, tyro.conf.arg(metavar="auto|cpu|cuda|cuda:N")] = "auto"
    """Where to run; auto takes a GPU if there is one."""

    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace output files that exist."""
