"""What cannot be reconstructed is refused in one line, with exit code 2 and nothing left behind."""

from __future__ import annotations

import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
import torch

from foresight.runtime import job
from foresight.runtime.reconstruct import main

MakeClip = Callable[..., Path]


@pytest.fixture(autouse=True)
def _no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading models would be an error: everything here is refused before."""
    monkeypatch.setitem(sys.modules, "foresight.runtime.loading", None)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run the command, see that it refuses, and return its one line."""
    assert main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("foresight-reconstruct: error: ")
    assert printed.err.count("\n") == 1
    assert "Traceback" not in printed.err
    return printed.err


def write_text(path: Path) -> None:
    path.write_text("Dear diary,\n" * 100)


def write_nothing(path: Path) -> None:
    path.touch()


def write_ffconcat(path: Path) -> None:
    path.write_text("ffconcat version 1.0\nfile /etc/passwd\n")


def write_playlist(path: Path) -> None:
    path.write_text("#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n")


def write_zero_frames(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()


def write_8192_square(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=24, options={"preset": "ultrafast"})
        stream.width = stream.height = 8192
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, 24)
        frame = av.VideoFrame(8192, 8192, "yuv420p")
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("name", "write", "reason"),
    [
        ("missing.mp4", lambda _: None, "no such file"),
        ("folder.mp4", Path.mkdir, "directory"),
        ("diary.mp4", write_text, ""),
        ("empty.mp4", write_nothing, "empty"),
        ("list.ffconcat", write_ffconcat, "playlist"),
        ("list.m3u8", write_playlist, "playlist"),
        ("silent.mp4", write_zero_frames, "no video"),
        ("huge.mp4", write_8192_square, "8192x8192"),
    ],
)
def test_clips(
    name: str, write: Callable[[Path], None], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / name)
    before = sorted(tmp_path.iterdir())
    message = refusal(capsys, tmp_path / name, "-o", tmp_path / "out.mp4")
    assert str(tmp_path / name) in message
    assert reason in message
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("option", ["--output", "--compare", "--report"])
def test_existing_outputs(
    option: str, make_clip: MakeClip, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, taken = make_clip(), tmp_path / "taken.mp4"
    taken.write_text("precious")
    output = [] if option == "--output" else ["-o", tmp_path / "out.mp4"]
    assert f"{taken}: exists already" in refusal(capsys, clip, *output, option, taken)
    assert taken.read_text() == "precious"
    assert sorted(tmp_path.iterdir()) == sorted([clip, taken])


@pytest.mark.parametrize("option", ["--output", "--compare", "--report"])
def test_outputs_in_a_missing_folder(
    option: str, make_clip: MakeClip, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, place = make_clip(), tmp_path / "nowhere" / "out.mp4"
    output = [] if option == "--output" else ["-o", tmp_path / "out.mp4"]
    assert str(place) in refusal(capsys, clip, *output, option, place)
    assert list(tmp_path.iterdir()) == [clip]


def test_an_output_in_a_folder_that_is_a_file(
    make_clip: MakeClip, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Permissions would not stop a superuser, a file in the place of a folder does.
    clip = make_clip()
    assert str(clip / "out.mp4") in refusal(capsys, clip, "-o", clip / "out.mp4")
    assert list(tmp_path.iterdir()) == [clip]


def test_an_output_that_is_not_an_mp4(
    make_clip: MakeClip, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = make_clip()
    assert "out.avi" in refusal(capsys, clip, "-o", tmp_path / "out.avi")
    assert list(tmp_path.iterdir()) == [clip]


def test_the_clip_is_never_replaced(make_clip: MakeClip, capsys: pytest.CaptureFixture[str]) -> None:
    clip = make_clip()
    content = clip.read_bytes()
    assert "is the clip itself" in refusal(capsys, clip, "-o", clip, "--overwrite")
    assert clip.read_bytes() == content


def test_two_outputs_of_one_name(
    make_clip: MakeClip, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.mp4"
    message = refusal(capsys, make_clip(), "-o", out, "--compare", tmp_path / "." / "out.mp4", "--overwrite")
    assert "another output" in message
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--steps", "0"], "steps 0"),
        (["--backend", "onnx"], "backend 'onnx': runs an engine; give one with --adapter"),
        (["--backend", "tensorrt"], "backend 'tensorrt': runs an engine; give one with --adapter"),
        (["--backend", "aoti", "--adapter", "."], "backend 'aoti': runs an engine, . is a checkpoint folder"),
        (["--steps", "9", "--stack", "full"], "steps 9"),
        (["--seed", "-1"], "seed -1"),
        (["--device", "tpu"], "device 'tpu'"),
        (["--device", "cuda:x"], "device 'cuda:x'"),
        (["--stack", "huge"], "huge"),
    ],
)
def test_impossible_options(
    arguments: list[str],
    reason: str,
    make_clip: MakeClip,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clip = make_clip()
    assert reason in refusal(capsys, clip, "-o", tmp_path / "out.mp4", *arguments)
    assert list(tmp_path.iterdir()) == [clip]


def test_an_interruption_leaves_nothing(
    make_clip: MakeClip, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "_load", interrupt)
    clip = make_clip()
    arguments = [clip, "-o", tmp_path / "out.mp4", "--report", tmp_path / "report.json"]
    assert main([str(argument) for argument in arguments]) == 130
    assert capsys.readouterr().err == "foresight-reconstruct: interrupted, nothing was written\n"
    assert list(tmp_path.iterdir()) == [clip]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_gpu_that_is_not_there() -> None:
    from foresight.runtime.device import find_device

    assert find_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match="device cuda: torch sees 0 CUDA devices"):
        find_device("cuda")
