"""A clip goes in, its reconstruction comes out: the command as a user runs it, on untrained nano models."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foresight.media import ClipReader
from foresight.runtime import job
from foresight.runtime.loading import LoadedModels, load_models
from foresight.runtime.pipeline import Pipeline
from foresight.runtime.reconstruct import main
from foresight.runtime.timing import STAGES

MakeClip = Callable[..., Path]


@pytest.fixture(scope="module")
def models() -> Callable[[str], LoadedModels]:
    loaded: dict[str, LoadedModels] = {}

    def load(mode: Any) -> LoadedModels:
        if mode not in loaded:
            loaded[mode] = load_models("nano", mode=mode, device="cpu", random_weights=True)
        return loaded[mode]

    return load


@pytest.fixture(autouse=True)
def _loaded_once(models: Callable[[str], LoadedModels], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "_load", lambda options, **_: models(options.mode or "conditioning"))


def run(*arguments: object) -> int:
    return main([*(str(argument) for argument in arguments), "--random-weights", "--device", "cpu"])


def read_clip(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with ClipReader(path) as reader:
        batches = list(reader.batches(8))
    frames, times = ([getattr(batch, name) for batch in batches] for name in ("frames", "timestamps"))
    return np.concatenate(frames), np.concatenate(times)


def test_the_output_has_the_clips_length_size_and_rate(
    make_clip: MakeClip, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, out = make_clip(frames=10, height=62, width=50, fps=30), tmp_path / "out.mp4"
    assert run(clip, "-o", out) == 0
    with ClipReader(out) as reader:
        assert (reader.info.width, reader.info.height, float(reader.info.fps)) == (50, 62, 30.0)
    np.testing.assert_allclose(read_clip(out)[1], np.arange(10) / 30, atol=1e-4)
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{out}: 10 frames at ")
    assert printed.err == ""
    assert sorted(tmp_path.iterdir()) == [clip, out]


@pytest.mark.parametrize("mode", ["conditioning", "latent"])
def test_the_report(mode: str, make_clip: MakeClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    clip, path = make_clip(frames=17), tmp_path / "report.json"
    assert run(clip, "-o", tmp_path / "out.mp4", "--report", path, "--mode", mode, "--steps", 2) == 0
    report = json.loads(path.read_text())
    stages = [name for name in STAGES if mode == "conditioning" or name != "denoise"]
    assert list(report["stages"]) == stages
    for name in stages:
        timing = report["stages"][name]
        assert 0 < timing["median_ms"] <= timing["total_ms"]
    assert report["stages"]["vae"]["calls"] == 2
    expected = {
        "frames": 17,
        "source_fps": 24.0,
        "width": 64,
        "height": 48,
        "model_size": [128, 192],
        "mode": mode,
        "steps": 2,
        "seed": 0,
        "stack": "nano",
        "random_weights": True,
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "omp_wait_policy": "PASSIVE",
        "gomp_spincount": "default",
        "peak_gpu_memory_mb": None,
        "warnings": [],
    }
    assert {name: report[name] for name in expected} == expected
    assert report["fps"] > 0
    assert 0 < report["first_frame_latency_ms"] < 17 / report["fps"] * 1e3
    assert 100 < report["peak_memory_mb"] < 10_000
    assert 0 < report["psnr_db"] < 40
    assert -1 < report["ssim"] < 1
    assert {"torch", "transformers", "diffusers", "timm", "av", "foresight"} <= set(report["versions"])
    assert report["stack_fingerprint"]
    assert "cores" in report["hardware"]


def test_the_comparison_shows_the_clip_on_the_left(make_clip: MakeClip, tmp_path: Path) -> None:
    clip, out, both = make_clip(), tmp_path / "out.mp4", tmp_path / "both.mp4"
    assert run(clip, "-o", out, "--compare", both) == 0
    pair = read_clip(both)[0]
    assert pair.shape == (10, 48, 128, 3)
    for half, path in ((pair[:, :, :64], clip), (pair[:, :, 64:], out)):
        assert np.abs(half.astype(int) - read_clip(path)[0]).mean() < 6


def test_the_models_own_size(make_clip: MakeClip, tmp_path: Path) -> None:
    out, both = tmp_path / "out.mp4", tmp_path / "both.mp4"
    clip = make_clip(frames=1, height=90, width=160)
    assert run(clip, "-o", out, "--size", "model", "--compare", both) == 0
    assert read_clip(out)[0].shape == (1, 108, 192, 3)
    assert read_clip(both)[0].shape == (1, 108, 384, 3)


def test_the_same_seed_gives_the_same_frames_and_another_others(make_clip: MakeClip, tmp_path: Path) -> None:
    clip = make_clip(frames=12)
    frames = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert run(clip, "-o", tmp_path / f"{name}.mp4", "--seed", seed) == 0
        frames.append(read_clip(tmp_path / f"{name}.mp4")[0])
    np.testing.assert_array_equal(frames[0], frames[1])
    assert (frames[0] != frames[2]).any()


def test_a_cut_clip_is_reconstructed_up_to_the_cut(
    make_clip: MakeClip, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, out, report = make_clip(frames=60), tmp_path / "out.mp4", tmp_path / "report.json"
    clip.write_bytes(clip.read_bytes()[:-400])
    assert run(clip, "-o", out, "--report", report) == 0
    printed = capsys.readouterr().err
    assert printed.startswith(f"foresight-reconstruct: warning: {clip}: is cut")
    assert printed.count("\n") == 1
    content = json.loads(report.read_text())
    assert 0 < content["frames"] == len(read_clip(out)[0]) < 60
    assert "is cut" in content["warnings"][0]


def test_overwrite_replaces_every_output(make_clip: MakeClip, tmp_path: Path) -> None:
    clip = make_clip(frames=1)
    outputs = [tmp_path / name for name in ("out.mp4", "both.mp4", "report.json")]
    for output in outputs:
        output.write_text("old")
    assert run(clip, "-o", outputs[0], "--compare", outputs[1], "--report", outputs[2], "--overwrite") == 0
    assert all(output.stat().st_size > 100 for output in outputs)
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("lost", ["out.mp4", "both.mp4", "report.json"])
@pytest.mark.parametrize("old", ["old", None])
def test_a_name_that_is_lost_on_the_way_leaves_no_output(
    lost: str,
    old: str | None,
    make_clip: MakeClip,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clip, report = make_clip(frames=1), job._report
    outputs = {name: tmp_path / name for name in ("out.mp4", "both.mp4", "report.json")}
    if old is not None:
        for output in outputs.values():
            output.write_text(old)

    def take_name(*arguments: Any) -> Any:
        outputs[lost].unlink(missing_ok=True)
        outputs[lost].mkdir()
        return report(*arguments)

    monkeypatch.setattr(job, "_report", take_name)
    options = ("--compare", outputs["both.mp4"], "--report", outputs["report.json"], "--overwrite")
    assert run(clip, "-o", outputs["out.mp4"], *options) == 2
    assert f"{outputs[lost]}: is a directory" in capsys.readouterr().err
    kept = {path for name, path in outputs.items() if name == lost or old is not None}
    assert set(tmp_path.iterdir()) == {clip} | kept
    assert all(path.is_dir() or path.read_text() == old for path in kept)


def test_an_interruption_in_the_middle_leaves_nothing(
    make_clip: MakeClip, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Pipeline.stream

    def interrupted(self: Pipeline, *arguments: Any, **options: Any) -> Iterator[Any]:
        yield next(stream(self, *arguments, **options))
        raise KeyboardInterrupt

    monkeypatch.setattr(Pipeline, "stream", interrupted)
    clip = make_clip(frames=30)
    assert run(clip, "-o", tmp_path / "out.mp4", "--compare", tmp_path / "both.mp4") == 130
    assert capsys.readouterr().err == "foresight-reconstruct: interrupted, nothing was written\n"
    assert list(tmp_path.iterdir()) == [clip]


def test_a_disk_that_fills_up_leaves_nothing(
    make_clip: MakeClip, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    clip = make_clip()
    monkeypatch.setattr("foresight.media.ClipWriter.write", full)
    assert run(clip, "-o", tmp_path / "out.mp4") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [clip]


def test_the_command_in_a_process_of_its_own(make_clip: MakeClip, tmp_path: Path) -> None:
    clip, out = make_clip(frames=5), tmp_path / "out.mp4"
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "foresight.runtime.reconstruct",
        clip,
        "-o",
        out,
        "--random-weights",
    ]
    done = subprocess.run([*command, "--device", "cpu"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(read_clip(out)[0]) == 5


def test_a_refusal_does_not_wait_for_torch() -> None:
    code = "import sys, foresight.runtime.reconstruct; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_the_full_stack_on_a_gpu(
    make_clip: MakeClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    clip, out, report = make_clip(frames=9, height=512, width=768), tmp_path / "out.mp4", tmp_path / "r.json"
    arguments = [
        clip,
        "-o",
        out,
        "--report",
        report,
        "--stack",
        "full",
        "--random-weights",
        "--device",
        "cuda",
    ]
    assert main([str(argument) for argument in arguments]) == 0
    content = json.loads(report.read_text())
    assert (content["dtype"], content["frames"], content["stages"]["denoise"]["calls"]) == ("bfloat16", 9, 1)
    assert content["backend"].startswith("fused (bfloat16 on cuda:0")
    assert read_clip(out)[0].shape == (9, 512, 768, 3)
