"""Clips that the tests make for themselves."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from foresight.media import FrameBatch

Frames = NDArray[np.uint8]

_ON = np.array([[1, 1, 1], [1, 1, 0], [0, 1, 1], [0, 1, 0], [1, 0, 1], [1, 0, 0], [0, 0, 1], [0, 0, 0]])
_BARS = (191 * _ON).astype(np.uint8)


def _colour_bars(width: int = 192, height: int = 128, count: int = 12) -> Frames:
    """Eight vertical bars; the fourth is green, the sixth red, the seventh blue."""
    row = _BARS[np.arange(width) * 8 // width]
    return np.broadcast_to(row, (count, height, width, 3)).copy()


def _batch_of(frames: Frames, fps: Fraction = Fraction(24)) -> FrameBatch:
    return FrameBatch(frames=frames, timestamps=np.arange(len(frames)) / float(fps), fps=fps)


def _psnr(left: Frames, right: Frames) -> float:
    error = float(np.mean((left.astype(np.float64) - right.astype(np.float64)) ** 2))
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def _write_tone(container: Any, stream: Any, seconds: float, rate: int = 48_000) -> None:
    """Encode a 440 Hz tone and mux it."""
    layout = stream.codec_context.layout.name
    channels = stream.codec_context.layout.nb_channels
    for start in range(0, int(seconds * rate), 960):
        wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(start, start + 960) / rate)
        samples = np.repeat((wave * 32767).astype(np.int16), channels)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


@pytest.fixture
def colour_bars() -> Callable[..., Frames]:
    """Return a function that draws bars of (width, height, count)."""
    return _colour_bars


@pytest.fixture
def batch_of() -> Callable[..., FrameBatch]:
    """Return a function that times frames at a constant rate."""
    return _batch_of


@pytest.fixture
def psnr() -> Callable[[Frames, Frames], float]:
    """Return a function that compares two clips in dB."""
    return _psnr


@pytest.fixture
def make_clip(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes frames to a clip with PyAV itself."""

    def make(
        name: str = "clip.mp4",
        frames: Frames | None = None,
        *,
        codec: str = "libx264",
        pix_fmt: str = "yuv420p",
        pts: list[int] | None = None,
        rotation: int = 0,
        matrix: int = 5,
        full_range: bool = False,
        tagged: bool = True,
        aspect: Fraction | None = None,
        audio: str | None = None,
        audio_seconds: float = 1.0,
        faststart: bool = True,
    ) -> Path:
        frames = _colour_bars() if frames is None else frames
        path = tmp_path / name
        options = {"movflags": "faststart"} if faststart and path.suffix == ".mp4" else {}
        colour_range = 2 if full_range else 1
        with av.open(str(path), "w", options=options) as container:
            stream: Any = container.add_stream(codec, rate=24)
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = pix_fmt
            stream.codec_context.time_base = Fraction(1, 24_000 if pts else 24)
            if aspect is not None:
                stream.codec_context.sample_aspect_ratio = aspect
            if tagged and pix_fmt != "gray":
                stream.codec_context.colorspace, stream.codec_context.color_range = matrix, colour_range
            if rotation:
                stream.set_display_rotation(rotation)
            sound: Any = container.add_stream(audio, rate=48_000) if audio else None
            for index, pixels in enumerate(frames):
                rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
                frame = rgb.reformat(format=pix_fmt, dst_colorspace=matrix, dst_color_range=colour_range)
                frame.pts = pts[index] if pts else index
                frame.time_base = stream.codec_context.time_base
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
            if sound is not None:
                _write_tone(container, sound, audio_seconds)
        return path

    return make
