"""Writing frames to an mp4 that every browser plays, in constant memory."""

from __future__ import annotations

import contextlib
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from av.container import OutputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from foresight.media.aperture import write_aperture
from foresight.media.audio import AudioTrack
from foresight.media.colour import YuvConverter
from foresight.media.errors import ClipError
from foresight.media.frames import FrameBatch
from foresight.media.pending import PendingFile
from foresight.media.source import printable_name

_SUFFIXES = (".mp4", ".m4v")
# libswscale averages two by two pixels for their chroma; the tag says so (ITU-T H.273, chroma location 1).
_ENCODER = {"crf": "18", "preset": "superfast", "x264-params": "chromaloc=1"}
_SECONDS_BETWEEN_KEYFRAMES = 2
_CLOCK = 90_000
_MAX_CLOCK = 1_000_000
_MAX_SIDE = 16_384


class ClipWriter:
    """Writes one h264 mp4 (4:2:0, BT.709, index first); a context manager that leaves nothing behind where it
    fails.

    The file has a temporary name in the same folder until `close`. Time stamps are kept to 1/90000 s or
    better, counted from the first frame. H264 that every browser plays needs even sizes: an odd frame is
    coded with its last column or row repeated, and a clean aperture tells readers its true size.
    `ClipReader`, QuickTime and FFmpeg's tools follow it; browsers show the repeated pixels.

    Args:
        path: the name of the output, ending in .mp4 or .m4v.
        width: width of every frame in pixels.
        height: height of every frame in pixels.
        fps: average frame rate; it sets how long the last frame is shown.
        audio_from: a clip whose first sound track is carried over, cut to the picture's length. It is copied
            where browsers play its codec from an mp4 (AAC, MP3, Opus), else coded again as AAC.
        overwrite: whether an existing file may be replaced.

    Raises:
        ClipError: the output exists, cannot be written or has another suffix; the source of sound cannot be
            opened.
        ValueError: the size or the frame rate is impossible.
    """

    def __init__(
        self,
        path: Path,
        *,
        width: int,
        height: int,
        fps: Fraction,
        audio_from: Path | None = None,
        overwrite: bool = False,
    ) -> None:
        _check_arguments(width, height, fps)
        self._path = Path(path)
        self._name = printable_name(str(path))
        if self._path.suffix.lower() not in _SUFFIXES:
            raise ClipError(f"{self._name}: the output is an mp4; give a name that ends in .mp4")
        self._shape = (height, width)
        self._coded = (height + height % 2, width + width % 2)
        self._fps = fps.limit_denominator(100_000)
        self._time_base = _time_base(self._fps)
        self._converter = YuvConverter()
        self._origin: float | None = None
        self._last_pts = -1
        self._audio: AudioTrack | None = None
        self._closed = False
        self._pending = PendingFile(self._path, overwrite=overwrite)
        try:
            self._container = self._open()
            self._stream = self._add_video(self._container)
            if audio_from is not None:
                self._audio = AudioTrack(audio_from, self._container)
            self._container.start_encoding()
        except BaseException as error:
            self.abort()
            if isinstance(error, av.FFmpegError):
                raise ClipError(f"{self._name}: cannot be encoded ({error.strerror})") from error
            raise

    @property
    def warning(self) -> str | None:
        """One sentence where the sound could not be carried over whole, else None."""
        return self._audio.warning if self._audio is not None else None

    def write(self, batch: FrameBatch) -> None:
        """Append frames; their time stamps go on from those written before.

        Raises:
            ValueError: the frames have another size than the file, or lie before the last frame.
            ClipError: the disk is full or the file cannot be written.
        """
        self._refuse_closed()
        if (batch.height, batch.width) != self._shape:
            height, width = self._shape
            raise ValueError(
                f"frames must be {width}x{height} as the file is, not {batch.width}x{batch.height}"
            )
        if self._origin is None:
            self._start(float(batch.timestamps[0]))
        try:
            for frame, seconds in zip(batch.frames, batch.timestamps, strict=True):
                self._write_frame(frame, float(seconds))
            if self._audio is not None:
                self._audio.mux_until(float(self._last_pts * self._time_base))
        except av.FFmpegError as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Finish the file and give it its name; a closed or aborted writer does nothing.

        Raises:
            ClipError: no frame was written, or the file cannot be finished; nothing stays behind.
        """
        if not self._closed:
            self.finish().commit()

    def finish(self) -> PendingFile:
        """Finish the file, but leave its name to whoever commits it; `abort` still discards it.

        Raises:
            ClipError: no frame was written, or the file cannot be finished; nothing stays behind.
            ValueError: the writer is closed.
        """
        self._refuse_closed()
        try:
            if self._origin is None:
                raise ClipError(f"{self._name}: no frames were written, so there is no clip to keep")
            self._finish()
        except BaseException as error:
            self.abort()
            if isinstance(error, av.FFmpegError):
                raise self._failure(error) from error
            raise
        self._closed = True
        return self._pending

    def abort(self) -> None:
        """Give up; neither the output nor its temporary file stays behind, unless it has its name already."""
        self._pending.discard()
        if self._closed:
            return
        self._closed = True
        if self._audio is not None:
            self._audio.close()
        # Closing writes the end of a file that is already gone; that it cannot is no news to the caller.
        with contextlib.suppress(av.FFmpegError, AttributeError):
            self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abort()

    def _open(self) -> OutputContainer:
        # The prefix keeps a colon in the name from being taken for a protocol.
        return av.open(
            f"file:{self._pending.temporary}", "w", format="mp4", options={"movflags": "faststart"}
        )

    def _add_video(self, container: OutputContainer) -> VideoStream:
        stream = container.add_stream("libx264", rate=self._fps, options=_ENCODER)
        context = stream.codec_context
        context.height, context.width = self._coded
        context.pix_fmt = "yuv420p"
        context.time_base = self._time_base
        context.sample_aspect_ratio = Fraction(1)
        context.gop_size = max(1, round(self._fps * _SECONDS_BETWEEN_KEYFRAMES))
        # BT.709 throughout, limited range (ITU-T H.273).
        context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1
        return stream

    def _start(self, origin: float) -> None:
        self._origin = origin
        if self._audio is not None:
            self._audio.start(origin)

    def _write_frame(self, frame: NDArray[np.uint8], seconds: float) -> None:
        pts = round((seconds - (self._origin or 0.0)) / self._time_base)
        if pts <= self._last_pts:
            raise ValueError(f"the frame at {seconds} s does not come after the one written before it")
        yuv = self._converter.convert(_padded(frame, self._coded))
        yuv.pts, yuv.time_base = pts, self._time_base
        self._last_pts = pts
        self._container.mux(self._stream.encode(yuv))

    def _finish(self) -> None:
        self._container.mux(self._stream.encode(None))
        if self._audio is not None:
            self._audio.finish(float(self._last_pts * self._time_base + 1 / self._fps))
            self._audio.close()
        self._container.close()
        if self._coded != self._shape:
            height, width = self._shape
            with self._pending.temporary.open("r+b") as file:
                size = self._pending.temporary.stat().st_size
                write_aperture(file, size, width, height, self._coded[1], self._coded[0])

    def _refuse_closed(self) -> None:
        if self._closed:
            raise ValueError(f"{self._name}: is closed; open another ClipWriter")

    def _failure(self, error: av.FFmpegError) -> ClipError:
        return ClipError(
            f"{self._name}: cannot be written ({error.strerror}); make room or choose another folder"
        )


def _check_arguments(width: int, height: int, fps: Fraction) -> None:
    if not (0 < width <= _MAX_SIDE and 0 < height <= _MAX_SIDE):
        raise ValueError(f"width and height must be 1 to {_MAX_SIDE} pixels, not {width}x{height}")
    if not isinstance(fps, Fraction) or fps <= 0:
        raise ValueError(f"fps must be a positive Fraction, not {fps!r}")


def _time_base(fps: Fraction) -> Fraction:
    """Return a clock on which a constant frame rate is exact and a variable one is off by 6 us at most."""
    ticks = fps.numerator * -(-_CLOCK // fps.numerator)
    return Fraction(1, ticks if ticks <= _MAX_CLOCK else _CLOCK)


def _padded(frame: NDArray[np.uint8], coded: tuple[int, int]) -> NDArray[np.uint8]:
    height, width = frame.shape[:2]
    if (height, width) == coded:
        return frame
    return np.pad(frame, ((0, coded[0] - height), (0, coded[1] - width), (0, 0)), mode="edge")
