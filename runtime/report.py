"""What a reconstruction was, how good and how fast, as one JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from foresight.runtime.timing import StageTiming

__all__ = ["Report"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One reconstruction.

    Args:
        clip: the clip's name.
        frames: number of frames reconstructed.
        fps: frames reconstructed a second, from the first one read to the last one written, everything
        included
            but the loading of the models.
        source_fps: the clip's own average frame rate.
        width, height: size of the output's frames in pixels.
        model_size: (height, width) of the model's frame in pixels.
        psnr_db, ssim: against the input at the model's size, without the letterbox's borders; None where a
            picture is too small for the measure.
        stages: milliseconds of every stage; "read" and "write" run beside the others.
        quality_ms: milliseconds spent on comparing with the input, which are in no stage.
        first_frame_latency_ms: from the beginning of reading to the first reconstructed frames.
        load_seconds: from the start of the command's work to models that are ready, imports included.
        peak_memory_mb: largest resident size of the process in MB (10^6 bytes).
        peak_gpu_memory_mb: most memory that torch had allocated on the GPU; None on a CPU.
        mode: what the adapter speaks to.
        threads, omp_wait_policy, gomp_spincount: what computed on the CPU; see `describe_threads`.
        backend: what ran the adapter: its name, dtype and device, and of an engine the member that it took.
        commit: the commit of the code where it is known.
        warnings: what was said on stderr, for instance that the clip was cut.
    """

    clip: str
    frames: int
    fps: float
    source_fps: float
    width: int
    height: int
    model_size: tuple[int, int]
    psnr_db: float | None
    ssim: float | None
    stages: Mapping[str, StageTiming]
    quality_ms: float
    first_frame_latency_ms: float
    load_seconds: float
    peak_memory_mb: float
    peak_gpu_memory_mb: float | None
    mode: str
    steps: int
    seed: int
    stack: str
    stack_fingerprint: str
    random_weights: bool
    adapter: str
    backend: str
    device: str
    dtype: str
    threads: int
    omp_wait_policy: str
    gomp_spincount: str
    hardware: str
    versions: Mapping[str, str]
    commit: str | None
    warnings: tuple[str, ...]

    def to_json(self) -> str:
        """The report as a JSON object, one field a line."""
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"
