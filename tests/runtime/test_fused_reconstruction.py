"""The shipped adapters through the fused kernels, on the example clip: what the command takes by default on a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from foresight.adapters import load_adapter
from foresight.media import ClipReader
from foresight.runtime.backend import Backend
from foresight.runtime.chunks import split_into_chunks
from foresight.runtime.config import BackendChoice, Mode, PipelineConfig
from foresight.runtime.loading import LoadedModels, load_models
from foresight.runtime.pipeline import Pipeline

CLIP = Path(__file__).parents[2] / "examples" / "clip.mp4"
MODES: tuple[Mode, ...] = ("conditioning", "latent")
on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


class Recorder:
    """A backend that keeps a copy of all that went in and came out."""

    def __init__(self, backend: Backend) -> None:
        self.config, self.device, self.dtype = backend.config, backend.device, backend.dtype
        self.calls: list[tuple[Tensor, Tensor, dict[str, Any], Tensor]] = []
        self._backend = backend

    def __call__(self, vlm: Tensor, dino: Tensor, **grids: Any) -> Tensor:
        output = self._backend(vlm, dino, **grids)
        self.calls.append((vlm.clone(), dino.clone(), grids, output.clone()))
        return output


def load(device: str, mode: Mode, backend: BackendChoice | None) -> LoadedModels:
    models = load_models("nano", mode=mode, device=device, backend=backend)
    assert models.adapter.describe().name == "fused"
    return models


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("device", "backend"), [("cpu", "fused"), pytest.param("cuda", None, marks=on_gpu)], ids=["cpu", "cuda"]
)
def test_the_clips_tokens_are_as_exact_as_eager(
    device: str, backend: BackendChoice | None, mode: Mode
) -> None:
    models = load(device, mode, backend)
    recorder: Any = Recorder(models.adapter)
    with ClipReader(CLIP) as reader:
        stream = Pipeline(models.stack, recorder, PipelineConfig(mode=mode, steps=1)).stream(
            reader.batches(8)
        )
        list(islice(stream, 3))
    folder = models.stack.adapter_folder(mode)
    reference = load_adapter(folder, device=device)
    rounded = load_adapter(folder, device=device, dtype=models.adapter.dtype)
    assert len(recorder.calls) >= 3
    with torch.inference_mode():
        for vlm, dino, grids, fused in recorder.calls:
            expected = reference(vlm.float(), dino.float(), **grids)
            allowed = 2 * (rounded(vlm, dino, **grids) - expected).abs().max() + 1e-3
            assert (fused - expected).abs().max() <= allowed


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=on_gpu)])
def test_chunks_in_flight_are_those_made_one_at_a_time(device: str, mode: Mode) -> None:
    models = load(device, mode, None)
    pipeline = Pipeline(models.stack, models.adapter, PipelineConfig(mode=mode))
    with ClipReader(CLIP) as reader:
        chunks = split_into_chunks(reader.batches(8), models.stack.config.num_frames)
        alone = [pipeline.reconstruct(chunk).batch.frames.copy() for chunk in chunks]
    with ClipReader(CLIP) as reader:
        together = [chunk.batch.frames for chunk in pipeline.stream(reader.batches(8))]
    assert len(alone) == 9
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=on_gpu)])
@pytest.mark.parametrize(("named", "expected"), [((), "fused"), (("--backend", "eager"), "eager")])
def test_the_commands_report_names_it(
    device: str, named: tuple[str, ...], expected: str, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    # In a process of its own, because that imports the libraries without what compiles kernels.
    command = [sys.executable, "-m", "foresight.runtime.reconstruct", CLIP, "-o", tmp_path / "out.mp4"]
    arguments = ("--report", report, "--device", device, *named)
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    described = json.loads(report.read_text())["backend"]
    assert described.startswith(f"{expected} (bfloat16 on cuda:0")
    line = f"foresight-reconstruct: conditioning_10m: backend {described}\n"
    assert (line in done.stderr) == (expected == "fused")
