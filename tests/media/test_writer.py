from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from foresight.media import ClipError, ClipReader, ClipWriter, FrameBatch

Frames = NDArray[np.uint8]
MakeClip = Callable[..., Path]
Psnr = Callable[[Frames, Frames], float]
BatchOf = Callable[..., FrameBatch]
FPS = Fraction(24)


def write(path: Path, batch: FrameBatch, audio_from: Path | None = None) -> Path:
    with ClipWriter(
        path, width=batch.width, height=batch.height, fps=batch.fps, audio_from=audio_from
    ) as writer:
        for start in range(0, len(batch), 5):
            part = slice(start, start + 5)
            writer.write(
                FrameBatch(frames=batch.frames[part], timestamps=batch.timestamps[part], fps=batch.fps)
            )
    return path


def read(path: Path) -> tuple[Frames, NDArray[np.float64]]:
    with ClipReader(path) as reader:
        batches = list(reader.batches(8))
    return np.concatenate([b.frames for b in batches]), np.concatenate([b.timestamps for b in batches])


def audio_of(path: Path) -> tuple[str, float, float]:
    """Codec, first and last second of the sound, and a check that it is not silent."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        frames = list(container.decode(stream))
        assert max(float(np.abs(frame.to_ndarray()).max()) for frame in frames) > 0.1
        first, last = frames[0].time, frames[-1].time
        assert first is not None
        assert last is not None
        return stream.codec_context.name, first, last + frames[-1].samples / frames[-1].sample_rate


def test_colour_bars_survive_writing_and_reading(
    tmp_path: Path, colour_bars: Callable[..., Frames], batch_of: BatchOf, psnr: Psnr
) -> None:
    bars = colour_bars()
    frames, seconds = read(write(tmp_path / "out.mp4", batch_of(bars)))
    assert psnr(frames, bars) > 30
    centres = np.arange(8) * 24 + 12
    assert np.abs(frames[:, 64, centres].astype(int) - bars[:, 64, centres]).max() <= 4
    np.testing.assert_allclose(seconds, np.arange(12) / 24, atol=1e-5)


def test_the_file_is_what_browsers_play(
    tmp_path: Path, colour_bars: Callable[..., Frames], batch_of: BatchOf
) -> None:
    path = write(tmp_path / "out.mp4", batch_of(colour_bars()))
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert context.colorspace == context.color_primaries == context.color_trc == context.color_range == 1


@pytest.mark.parametrize("size", [(191, 127), (192, 127), (191, 128), (1, 1)])
def test_odd_sizes_come_back_as_asked(
    tmp_path: Path, colour_bars: Callable[..., Frames], batch_of: BatchOf, size: tuple[int, int]
) -> None:
    bars = colour_bars(*size)
    path = write(tmp_path / "odd.mp4", batch_of(bars))
    frames, _ = read(path)
    assert frames.shape == bars.shape
    assert np.abs(frames[:, -1, -1].astype(int) - bars[:, -1, -1]).max() <= 4
    with av.open(str(path)) as container:
        assert len(list(container.decode(video=0))) == 12


def test_odd_sizes_with_sound(
    tmp_path: Path, make_clip: MakeClip, colour_bars: Callable[..., Frames], batch_of: BatchOf
) -> None:
    path = write(tmp_path / "odd.mp4", batch_of(colour_bars(191, 127)), make_clip(audio="aac"))
    assert read(path)[0].shape[1:3] == (127, 191)
    assert audio_of(path)[0] == "aac"


@pytest.mark.parametrize("fps", [Fraction(30_000, 1001), Fraction(25), Fraction(1_000_000, 41_708)])
def test_variable_time_stamps_survive(
    tmp_path: Path, colour_bars: Callable[..., Frames], fps: Fraction
) -> None:
    stamps = np.array([0, 1, 2, 2.5, 6, 7, 7.1, 9, 20, 21, 22, 22.3]) / float(fps)
    batch = FrameBatch(frames=colour_bars(), timestamps=stamps, fps=fps)
    np.testing.assert_allclose(read(write(tmp_path / "vfr.mp4", batch))[1], stamps, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "source_codec", "codec"),
    [
        ("a.mp4", "aac", "aac"),
        ("a.webm", "libopus", "opus"),
        ("a.mkv", "flac", "aac"),
        ("a.mkv", "pcm_s16le", "aac"),
    ],
)
def test_sound_is_carried_over_and_cut_to_the_picture(
    tmp_path: Path,
    make_clip: MakeClip,
    colour_bars: Callable[..., Frames],
    batch_of: BatchOf,
    name: str,
    source_codec: str,
    codec: str,
) -> None:
    video = "libvpx-vp9" if name.endswith("webm") else "libx264"
    source = make_clip(name, codec=video, audio=source_codec, audio_seconds=2.0)
    found, first, last = audio_of(write(tmp_path / "out.mp4", batch_of(colour_bars()), source))
    assert found == codec
    assert first == pytest.approx(0, abs=0.03)
    # Sound is cut between packets; those of FLAC last a tenth of a second.
    assert last == pytest.approx(0.5, abs=0.1)


def test_sound_starts_with_the_first_frame_that_is_written(
    tmp_path: Path, make_clip: MakeClip, colour_bars: Callable[..., Frames]
) -> None:
    source = make_clip(frames=colour_bars(count=48), audio="aac", audio_seconds=2.0)
    late = FrameBatch(frames=colour_bars(), timestamps=1.5 + np.arange(12) / 24, fps=FPS)
    path = write(tmp_path / "out.mp4", late, source)
    assert read(path)[1][0] == 0
    assert audio_of(path)[2] == pytest.approx(0.5, abs=0.06)


def test_a_silent_source_gives_a_silent_clip(
    tmp_path: Path, make_clip: MakeClip, colour_bars: Callable[..., Frames], batch_of: BatchOf
) -> None:
    path = write(tmp_path / "out.mp4", batch_of(colour_bars()), make_clip())
    with ClipReader(path) as reader:
        assert not reader.info.has_audio


def test_an_existing_output_is_refused_unless_asked(
    tmp_path: Path, colour_bars: Callable[..., Frames], batch_of: BatchOf
) -> None:
    path = tmp_path / "out.mp4"
    path.write_bytes(b"mine")
    with pytest.raises(ClipError, match="exists already"):
        ClipWriter(path, width=192, height=128, fps=FPS)
    assert path.read_bytes() == b"mine"
    with ClipWriter(path, width=192, height=128, fps=FPS, overwrite=True) as writer:
        writer.write(batch_of(colour_bars()))
        assert path.read_bytes() == b"mine"
    assert len(read(path)[0]) == 12
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path, reason in (
        (tmp_path / "missing" / "out.mp4", "no folder"),
        (tmp_path / "file" / "out.mp4", "no folder"),
        (tmp_path / "out.webm", "ends in .mp4"),
        (Path("/proc/out.mp4"), "."),
    ):
        with pytest.raises(ClipError, match=reason) as caught:
            ClipWriter(path, width=192, height=128, fps=FPS)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(ClipError, match="directory"):
        ClipWriter(tmp_path / "folder.mp4", width=192, height=128, fps=FPS, overwrite=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ClipError, match="cannot be written"):
        ClipWriter(tmp_path / "out.mp4", width=192, height=128, fps=FPS)


def test_a_missing_source_of_sound_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ClipError, match="no such file"):
        ClipWriter(tmp_path / "out.mp4", width=192, height=128, fps=FPS, audio_from=tmp_path / "missing.mp4")
    assert list(tmp_path.iterdir()) == []


def test_nothing_stays_behind_after_an_exception(
    tmp_path: Path, colour_bars: Callable[..., Frames], batch_of: BatchOf
) -> None:
    def interrupted() -> None:
        with ClipWriter(tmp_path / "out.mp4", width=192, height=128, fps=FPS) as writer:
            writer.write(batch_of(colour_bars()))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_nothing_stays_behind_after_an_abort_or_without_frames(tmp_path: Path) -> None:
    writer = ClipWriter(tmp_path / "out.mp4", width=192, height=128, fps=FPS)
    writer.abort()
    writer.close()
    with pytest.raises(ClipError, match="no frames"):
        ClipWriter(tmp_path / "out.mp4", width=192, height=128, fps=FPS).close()
    forgotten = ClipWriter(tmp_path / "out.mp4", width=192, height=128, fps=FPS)
    del forgotten
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line_and_leaves_nothing_behind(
    tmp_path: Path, batch_of: BatchOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise av.error.OSError(28, "No space left on device")

    writer = ClipWriter(tmp_path / "out.mp4", width=192, height=128, fps=FPS)
    monkeypatch.setattr(writer, "_write_frame", full)
    with pytest.raises(ClipError, match="No space left"), writer:
        writer.write(batch_of(np.zeros((2, 128, 192, 3), np.uint8)))
    assert list(tmp_path.iterdir()) == []


def test_frames_that_do_not_fit_are_refused(
    tmp_path: Path, colour_bars: Callable[..., Frames], batch_of: BatchOf
) -> None:
    with ClipWriter(tmp_path / "out.mp4", width=192, height=128, fps=FPS) as writer:
        with pytest.raises(ValueError, match="192x128"):
            writer.write(batch_of(colour_bars(96, 64)))
        writer.write(batch_of(colour_bars()))
        with pytest.raises(ValueError, match="does not come after"):
            writer.write(batch_of(colour_bars()))
    with pytest.raises(ValueError, match="is closed"):
        writer.write(batch_of(colour_bars()))


@pytest.mark.parametrize(
    ("width", "height", "fps"), [(0, 128, FPS), (192, 20_000, FPS), (192, 128, Fraction(0))]
)
def test_impossible_arguments(tmp_path: Path, width: int, height: int, fps: Fraction) -> None:
    with pytest.raises(ValueError, match="must be"):
        ClipWriter(tmp_path / "out.mp4", width=width, height=height, fps=fps)
    assert list(tmp_path.iterdir()) == []


def test_sound_of_a_cut_source_ends_at_the_cut(
    tmp_path: Path, make_clip: MakeClip, colour_bars: Callable[..., Frames]
) -> None:
    noise = np.random.default_rng(0).integers(0, 80, (48, 128, 192, 3), np.uint8)
    source = make_clip("cut.mkv", frames=colour_bars(count=48) // 2 + noise, audio="aac", audio_seconds=2.0)
    source.write_bytes(source.read_bytes()[: source.stat().st_size * 6 // 10])
    path = tmp_path / "out.mp4"
    with (
        ClipReader(source) as reader,
        ClipWriter(path, width=192, height=128, fps=FPS, audio_from=source) as writer,
    ):
        for batch in reader.batches(8):
            writer.write(batch)
        assert reader.warning is not None
    assert len(read(path)[0]) > 10
    assert audio_of(path)[2] < 2
