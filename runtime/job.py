"""One clip from its file to the files of its reconstruction, and what was measured on the way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tqdm import tqdm

from foresight.media import ClipInfo, ClipReader, FrameBatch
from foresight.models.presets import StackConfig
from foresight.models.sigmas import sigma_schedule
from foresight.models.stack_file import load_config
from foresight.runtime.background import ReadAhead, WriteBehind
from foresight.runtime.config import OutputSize, PipelineConfig, check_backend
from foresight.runtime.device import check_device_name
from foresight.runtime.libraries import import_libraries
from foresight.runtime.options import ReconstructOptions
from foresight.runtime.outputs import Outputs, check_paths
from foresight.runtime.report import Report

# What imports torch is imported inside the functions that need it: a clip or an output that is refused must
# not wait for it.
if TYPE_CHECKING:
    from foresight.runtime.loading import LoadedModels
    from foresight.runtime.pipeline import Pipeline
    from foresight.runtime.quality import QualityMeter
    from foresight.runtime.timing import StageClock

__all__ = ["reconstruct"]

# Bounds on what waits in memory, for clips of very large frames.
_BATCH_BYTES, _BATCHES_AHEAD = 2**25, 2
_WRITE_BYTES, _CHUNKS_BEHIND = 2**28, 2
_NOT_FINITE = "the models answered with values that are no numbers: the reconstruction is not to be trusted"


def reconstruct(options: ReconstructOptions, *, own_process: bool = False) -> Report:
    """Reconstruct a clip; the clip and all outputs are checked before any model is loaded.

    `own_process` says that nothing but this job runs in the process, so that its imports may leave out what
    the job does not need. Raises ValueError (ClipError, AdapterError, ReconstructError) in one line for what
    the user can mend; no output is left then.
    """
    config = PipelineConfig(steps=options.steps, seed=options.seed, size=options.size)
    check_device_name(options.device)
    stack_config = load_config(options.stack)
    sigma_schedule(stack_config, options.steps)
    check_paths(options)
    check_backend(options.backend, options.adapter)
    with ClipReader(options.clip) as reader:
        size = _output_size(options.size, reader.info, stack_config)
        with Outputs(options, size=size, fps=reader.info.fps, audio=reader.info.has_audio) as outputs:
            begun = time.perf_counter()
            models = _load(options, own_process=own_process)
            load_seconds = time.perf_counter() - begun
            from foresight.runtime.pipeline import Pipeline
            from foresight.runtime.quality import QualityMeter

            config = replace(config, mode=models.mode)
            pipeline, meter = Pipeline(models.stack, models.adapter, config), QualityMeter()
            run = _run(reader, outputs, pipeline, meter)
            report = _report(options, reader.info, size, models, pipeline, meter, run, load_seconds)
            outputs.write_report(report)
            return report


def _load(options: ReconstructOptions, *, own_process: bool) -> LoadedModels:
    if own_process:
        import_libraries()
    from foresight.runtime.loading import load_models

    return load_models(
        options.stack,
        mode=options.mode,
        device=options.device,
        random_weights=options.random_weights,
        adapter=options.adapter,
        backend=options.backend,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    frames: int
    seconds: float
    first_frame_seconds: float
    warnings: tuple[str, ...]


def _run(reader: ClipReader, outputs: Outputs, pipeline: Pipeline, meter: QualityMeter) -> _Run:
    clock, info = pipeline.clock, reader.info

    def write(pair: tuple[FrameBatch, FrameBatch | None]) -> None:
        batch, source = pair
        with clock.host_stage("write"):
            outputs.write(batch, source)

    begun = time.perf_counter()
    first_frame_seconds, frames = 0.0, 0
    frame_bytes = info.width * info.height * 3
    size = max(1, min(8, _BATCH_BYTES // frame_bytes))
    behind = max(1, min(_CHUNKS_BEHIND, _WRITE_BYTES // (8 * frame_bytes)))
    with (
        WriteBehind(write, behind) as writer,
        ReadAhead(_timed(reader.batches(size), clock), _BATCHES_AHEAD) as batches,
        tqdm(total=info.num_frames, unit=" frames", disable=None) as progress,
    ):
        for chunk in pipeline.stream(batches, quality=meter):
            first_frame_seconds = first_frame_seconds or time.perf_counter() - begun
            frames += len(chunk.batch)
            writer.put((chunk.batch, chunk.source if outputs.wants_source else None))
            progress.update(len(chunk.batch))
    with clock.host_stage("write"):
        sound = outputs.close()
    return _Run(
        frames=frames,
        seconds=time.perf_counter() - begun,
        first_frame_seconds=first_frame_seconds,
        warnings=((reader.warning,) if reader.warning else ()) + sound,
    )


def _timed(batches: Iterator[FrameBatch], clock: StageClock) -> Iterator[FrameBatch]:
    while True:
        with clock.host_stage("read"):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _output_size(choice: OutputSize, info: ClipInfo, stack: StackConfig) -> tuple[int, int]:
    source = (info.height, info.width)
    if choice == "source":
        return source
    from foresight.runtime.framing import Letterbox

    return Letterbox(source, stack.size).fitted


def _report(
    options: ReconstructOptions,
    info: ClipInfo,
    size: tuple[int, int],
    models: LoadedModels,
    pipeline: Pipeline,
    meter: QualityMeter,
    run: _Run,
    load_seconds: float,
) -> Report:
    from foresight.evaluation.environment import (
        describe_hardware,
        describe_threads,
        find_commit,
        library_versions,
    )
    from foresight.runtime.timing import peak_gpu_memory_mb, peak_memory_mb

    timings = pipeline.clock.timings()
    quality = timings.pop("quality", None)
    return Report(
        clip=info.name,
        frames=run.frames,
        fps=run.frames / run.seconds,
        source_fps=float(info.fps),
        width=size[1],
        height=size[0],
        model_size=models.stack.config.size,
        psnr_db=meter.psnr_db,
        ssim=meter.ssim,
        stages=timings,
        quality_ms=quality.total_ms if quality else 0.0,
        first_frame_latency_ms=run.first_frame_seconds * 1e3,
        load_seconds=load_seconds,
        peak_memory_mb=peak_memory_mb(),
        peak_gpu_memory_mb=peak_gpu_memory_mb(pipeline.device),
        mode=models.mode,
        steps=options.steps,
        seed=options.seed,
        stack=models.stack.config.name,
        stack_fingerprint=models.stack.fingerprint,
        random_weights=options.random_weights,
        adapter=models.adapter_name,
        backend=str(models.adapter.describe()),
        device=str(pipeline.device),
        dtype=str(pipeline.dtype).removeprefix("torch."),
        **describe_threads(),
        hardware=describe_hardware(str(pipeline.device)),
        versions=library_versions(),
        commit=find_commit(),
        warnings=run.warnings + (() if meter.finite else (_NOT_FINITE,)),
    )
