"""What the user of `foresight-train` can choose; imports nothing heavy.

Values are checked by whoever uses a configuration, not when it is made: the command line's parser would frame an
error raised there in a box of several lines.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from foresight.training.presets import STAGES

__all__ = ["AdapterTrainingConfig", "Device", "EvaluationConfig", "NanoConfig", "write_options"]

Device = Literal["auto", "cpu", "cuda"]


def write_options(config: NanoConfig | AdapterTrainingConfig, folder: Path) -> None:
    """Put a run's resolved options beside what it makes, as config.json in `folder`, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    options = {name: str(value) for name, value in dataclasses.asdict(config).items()}
    (folder / "config.json").write_text(json.dumps(options, indent=2) + "\n")


def at_least_one(config: object, *names: str) -> None:
    """Raise ValueError for a field of `config` that is less than one."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} {getattr(config, name)}: must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class NanoConfig:
    """Train the nano stack from nothing, in stages that are each on disk before the next begins."""

    run: Path = Path("runs/nano")
    """Folder of logs, states and results; the finished stack lies in its subfolder "stack"."""

    stages: tuple[str, ...] = field(default_factory=lambda: tuple(STAGES))
    """The stages to train; a finished one is loaded, never trained twice."""

    length: float = 1.0
    """Scales every stage's number of steps."""

    rate: float = 1.0
    """Scales every stage's learning rates; about a half suits weights that are trained already."""

    start_from: str | None = None
    """A finished stack (nano, or a folder) whose weights the stages start from, and serve where a stage is left out."""

    batch: int | None = None
    """Clips a step, instead of each stage's own number."""

    pool: int = 65_536
    """Procedural clips held in memory (0.66 MB each)."""

    minutes: float = math.inf
    """Save and stop after so much wall time; the same command continues."""

    device: Device = "auto"
    """Where to train; on a CPU only tiny lengths make sense."""

    seed: int = 0
    """Seed of the clips and of the initial weights."""

    def check(self) -> None:
        """Raise ValueError for a value out of range."""
        for stage in self.stages:
            if stage not in STAGES:
                raise ValueError(f"stage {stage!r}: must be one of {', '.join(STAGES)}")
        for name in ("length", "rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} {getattr(self, name)}: must be positive")
        at_least_one(self, "pool", *(() if self.batch is None else ("batch",)))


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterTrainingConfig:
    """Train one adapter between a stack's frozen encoders and its frozen decoder."""

    output: Path
    """Folder of the finished checkpoint."""

    run: Path
    """Folder of the log and the resumable state."""

    stack: str = "nano"
    """The frozen models: nano, full, or a folder."""

    architecture: str = "query"
    """query, bottleneck, lora and perceiver steer the transformer; cross_attention, linear and mlp give latents."""

    size: str = "10m"
    """Nominal number of parameters, a preset of the architecture."""

    start_from: Path | None = None
    """Folder of a checkpoint whose weights the adapter starts from, whichever stack it was trained on."""

    clips: Path | None = None
    """Folder of videos to train on; without it, procedural clips are made."""

    pool: int = 4_096
    """Clips held in memory."""

    keep_features: bool = False
    """Run the encoders once a clip and keep what they saw in memory (nano: 1.2 MB a clip); much faster."""

    steps: int = 7_000
    """Optimisation steps."""

    batch: int = 64
    """Clips a step."""

    muon_rate: float = 1.5e-3
    """Learning rate of the hidden matrices."""

    adamw_rate: float = 5e-4
    """Learning rate of everything else."""

    minutes: float = math.inf
    """Save and stop after so much wall time; the same command continues."""

    device: Device = "auto"
    """Where to train."""

    seed: int = 0
    """Seed of the clips and of the initial weights."""

    def check(self) -> None:
        """Raise ValueError for a value out of range."""
        at_least_one(self, "pool", "steps", "batch")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """Measure a stack and its adapters on held-out clips and photographs, and hold them against the bars."""

    out: Path
    """The JSON file to write."""

    stack: str = "nano"
    """The stack to measure: nano, or a folder."""

    clips: int = 96
    """Procedural clips a set."""

    steps: int = 4
    """Denoising steps."""

    seed: int = 0
    """Seed of the denoising noise."""

    device: Device = "auto"
    """Where to run; the clips are the same everywhere."""

    run: Path | None = None
    """A run of the nano training: measure the transformer under its own conditioning too, which is not shipped."""

    def check(self) -> None:
        """Raise ValueError for a value out of range."""
        at_least_one(self, "clips", "steps")
