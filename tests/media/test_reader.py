from __future__ import annotations

import os
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from foresight.media import LOCAL, UNTRUSTED, ClipError, ClipInfo, ClipLimits, ClipReader

Frames = NDArray[np.uint8]
MakeClip = Callable[..., Path]
Psnr = Callable[[Frames, Frames], float]


def read(path: Path | bytes, size: int = 5) -> tuple[Frames, NDArray[np.float64], ClipInfo, str | None]:
    with ClipReader(path) as reader:
        batches = list(reader.batches(size))
        frames = np.concatenate([batch.frames for batch in batches])
        seconds = np.concatenate([batch.timestamps for batch in batches])
        return frames, seconds, reader.info, reader.warning


def test_info_and_batches(make_clip: MakeClip) -> None:
    with ClipReader(make_clip(audio="aac")) as reader:
        info = reader.info
        sizes = [len(batch) for batch in reader.batches(5)]
    assert (info.width, info.height, info.num_frames, info.fps) == (192, 128, 12, Fraction(24))
    assert (info.codec, info.has_audio, info.rotation) == ("h264", True, 0)
    assert info.seconds == pytest.approx(0.5, abs=0.01)
    assert sizes == [5, 5, 2]


def test_bytes_and_paths_give_the_same_frames(make_clip: MakeClip) -> None:
    path = make_clip()
    np.testing.assert_array_equal(read(path)[0], read(path.read_bytes())[0])


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("a.mp4", "libx264", "yuv420p"),
        ("a.mp4", "libx264", "yuv422p"),
        ("a.mp4", "libx264", "yuv444p"),
        ("a.mp4", "libx264", "yuv420p10le"),
        ("a.mkv", "libx264", "yuv420p"),
        ("a.webm", "libvpx-vp9", "yuv420p"),
        ("a.webm", "libvpx", "yuv420p"),
        ("a.mov", "mpeg4", "yuv420p"),
    ],
)
def test_formats_and_pixel_formats_keep_their_colours(
    make_clip: MakeClip, colour_bars: Callable[..., Frames], psnr: Psnr, name: str, codec: str, pix_fmt: str
) -> None:
    frames, _, _, warning = read(make_clip(name, codec=codec, pix_fmt=pix_fmt))
    assert frames.shape == (12, 128, 192, 3)
    assert psnr(frames, colour_bars()) > 30
    assert warning is None


def test_grey_stays_grey(make_clip: MakeClip, colour_bars: Callable[..., Frames]) -> None:
    frames = read(make_clip(pix_fmt="gray", frames=np.full_like(colour_bars(), 120)))[0]
    assert np.abs(frames.astype(int) - 120).max() <= 2


@pytest.mark.parametrize("matrix", [1, 5, 9])
@pytest.mark.parametrize("full_range", [False, True])
def test_the_streams_own_matrix_and_range_are_used(
    make_clip: MakeClip, colour_bars: Callable[..., Frames], matrix: int, full_range: bool
) -> None:
    frames = read(make_clip(matrix=matrix, full_range=full_range))[0]
    centres = np.arange(8) * 24 + 12
    difference = frames[:, 64, centres].astype(int) - colour_bars()[:, 64, centres]
    assert np.abs(difference).max() <= 3


@pytest.mark.parametrize(("height", "matrix"), [(128, 5), (720, 1)])
def test_an_untagged_clip_is_601_when_small_and_709_when_large(
    make_clip: MakeClip, colour_bars: Callable[..., Frames], height: int, matrix: int
) -> None:
    bars = colour_bars(192, height, 2)
    frames = read(make_clip(frames=bars, matrix=matrix, tagged=False))[0]
    centres = np.arange(8) * 24 + 12
    assert np.abs(frames[:, 64, centres].astype(int) - bars[:, 64, centres]).max() <= 3


@pytest.mark.parametrize(("rotation", "clockwise", "turns"), [(90, 270, 1), (-90, 90, -1), (180, 180, 2)])
def test_rotated_clips_come_out_upright(
    make_clip: MakeClip,
    colour_bars: Callable[..., Frames],
    psnr: Psnr,
    rotation: int,
    clockwise: int,
    turns: int,
) -> None:
    frames, _, info, _ = read(make_clip(rotation=rotation))
    expected = np.rot90(colour_bars(), turns, axes=(1, 2))
    assert (info.height, info.width) == expected.shape[1:3]
    assert info.rotation == clockwise
    assert psnr(frames, expected) > 30


def test_a_variable_frame_rate_keeps_its_time_stamps(make_clip: MakeClip) -> None:
    pts = [
        12_000 + step
        for step in (0, 1000, 1500, 4000, 9000, 9100, 12_000, 13_000, 20_000, 21_000, 21_500, 24_000)
    ]
    _, seconds, info, _ = read(make_clip("vfr.mp4", pts=pts))
    np.testing.assert_allclose(seconds, (np.array(pts) - pts[0]) / 24_000, atol=1e-4)
    assert 10 < info.fps < 14


def test_pixels_that_are_not_square_are_stretched(make_clip: MakeClip) -> None:
    frames, _, info, _ = read(make_clip(aspect=Fraction(4, 3)))
    assert (info.width, info.height) == (256, 128)
    assert frames.shape[1:3] == (128, 256)


def test_odd_sizes(make_clip: MakeClip, colour_bars: Callable[..., Frames]) -> None:
    bars = colour_bars(191, 127, 3)
    frames = read(make_clip("odd.webm", codec="libvpx-vp9", frames=bars))[0]
    assert frames.shape == bars.shape
    assert np.abs(frames[:, :, 108].astype(int) - bars[:, :, 108]).mean() < 5
    assert np.abs(frames[:, :, -1].astype(int) - bars[:, :, -1]).mean() < 5


def test_a_single_frame(make_clip: MakeClip, colour_bars: Callable[..., Frames]) -> None:
    frames, seconds, _, warning = read(make_clip(frames=colour_bars(count=1)))
    assert (len(frames), list(seconds), warning) == (1, [0.0], None)


@pytest.mark.parametrize("name", ["cut.mp4", "cut.mkv"])
def test_a_cut_clip_gives_its_frames_up_to_the_cut_and_says_so(
    make_clip: MakeClip, colour_bars: Callable[..., Frames], psnr: Psnr, name: str
) -> None:
    noise = np.random.default_rng(0).integers(0, 80, (40, 128, 192, 3), np.uint8)
    moving = colour_bars(count=40) // 2 + noise
    path = make_clip(name, frames=moving)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    frames, _, _, warning = read(path)
    assert 5 < len(frames) < 35
    assert psnr(frames, moving[: len(frames)]) > 20
    assert warning is not None
    assert "\n" not in warning
    assert f"{path}: is cut" in warning


def test_frames_can_be_read_once(make_clip: MakeClip) -> None:
    with ClipReader(make_clip()) as reader:
        list(reader.batches(8))
        with pytest.raises(ValueError, match="once"):
            reader.batches(8)
        with pytest.raises(ValueError, match="at least 1"):
            reader.batches(0)


def assert_refused(source: Path | bytes, reason: str, limits: ClipLimits = LOCAL) -> None:
    started = time.perf_counter()
    with pytest.raises(ClipError, match=reason) as caught, ClipReader(source, limits) as reader:
        list(reader.batches(8))
    assert time.perf_counter() - started < 1
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("clip: " if isinstance(source, bytes) else f"{source}: ")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"no video here\n" * 50, "not a video"),
        (b"ffconcat version 1.0\nfile /etc/hostname\n", "playlist"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n", "playlist"),
        (b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\nm=video 5004 RTP/AVP 96\r\n", "playlist"),
        (b"\n\n\nffconcat version 1.0\nfile /etc/hostname\n", "playlist"),
        (b"RIFF\x00\x00\x00\x00AVI LIST" + bytes(200), "not a video"),
        (b"\x1a\x45\xdf\xa3" + bytes(100), "not a video"),
        (b"\x00\x00\x00\x18ftypisom" + bytes(100), "no index"),
    ],
)
def test_files_that_are_no_clips(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    assert_refused(path, reason)
    assert_refused(content, reason)


def test_places_that_are_no_clips(tmp_path: Path) -> None:
    assert_refused(tmp_path / "missing.mp4", "no such file")
    assert_refused(tmp_path, "directory")
    os.mkfifo(tmp_path / "pipe.mp4")
    assert_refused(tmp_path / "pipe.mp4", "regular file")


def test_names_with_control_characters_stay_on_one_line(tmp_path: Path) -> None:
    with pytest.raises(ClipError) as caught:
        ClipReader(tmp_path / "two\nlines.mp4")
    assert "\n" not in str(caught.value)


def test_an_mp4_without_its_index(make_clip: MakeClip) -> None:
    path = make_clip(faststart=False)
    path.write_bytes(path.read_bytes()[:-2000])
    assert_refused(path, "no index")


def test_a_clip_of_sound_only(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 9600), np.int16), format="s16", layout="stereo")
        frame.sample_rate = 48_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert_refused(path, "no video")


@pytest.mark.parametrize("name", ["none.mp4", "none.mkv"])
def test_a_clip_of_zero_frames(tmp_path: Path, name: str) -> None:
    with av.open(str(tmp_path / name), "w") as container:
        container.add_stream("libx264", rate=24)
        container.start_encoding()
    assert_refused(tmp_path / name, "no video|not a video")


def test_a_codec_off_the_list(make_clip: MakeClip) -> None:
    assert_refused(make_clip("a.mkv", codec="ffv1"), "ffv1 is not accepted")


@pytest.mark.parametrize("limits", [LOCAL, UNTRUSTED])
def test_a_huge_picture_is_refused_by_its_header(make_clip: MakeClip, limits: ClipLimits) -> None:
    path = make_clip(frames=np.zeros((1, 8192, 8192, 3), np.uint8))
    assert_refused(path, "8192x8192", limits)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (ClipLimits(max_bytes=500), "at most 500 bytes"),
        (ClipLimits(max_pixels=128 * 191), "192x128"),
        (ClipLimits(max_frames=11), "11 are accepted"),
        (ClipLimits(max_seconds=0.4), "0.4 s are accepted"),
        (ClipLimits(max_decode_seconds=1e-9), "to decode"),
    ],
)
def test_each_limit_is_held(make_clip: MakeClip, limits: ClipLimits, reason: str) -> None:
    assert_refused(make_clip(), reason, limits)


def test_frames_are_counted_where_the_header_is_silent(make_clip: MakeClip) -> None:
    path = make_clip("a.mkv")
    assert_refused(path, "more than the 7 frames", ClipLimits(max_frames=7))


def test_reading_is_quick(make_clip: MakeClip, colour_bars: Callable[..., Frames]) -> None:
    path = make_clip(frames=colour_bars(640, 360, 60))
    with ClipReader(path) as reader:
        started = time.process_time()
        count = sum(len(batch) for batch in reader.batches(8))
        spent = time.process_time() - started
    assert count / spent > 200
