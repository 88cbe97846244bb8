"""Reading a clip file into batches of upright RGB frames, in constant memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from numpy.typing import NDArray

from foresight.media.aperture import odd_aperture
from foresight.media.colour import RgbConverter
from foresight.media.container import OpenClip, check_size, header_seconds, open_container, stream_fps
from foresight.media.decoder import FrameDecoder
from foresight.media.errors import ClipError
from foresight.media.frames import FrameBatch
from foresight.media.limits import LOCAL, ClipLimits
from foresight.media.orientation import Orientation, frame_orientation
from foresight.media.source import Source, open_source

_MAX_PIXEL_ASPECT = 4
_SMALLEST_STEP = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipInfo:
    """What is known of a clip before its frames are read.

    Args:
        width: width of an upright frame in square pixels.
        height: height of an upright frame in square pixels.
        fps: average frame rate in frames per second.
        num_frames: number of frames that the header promises, or None; a cut clip yields fewer.
        seconds: duration that the header promises, or None.
        codec: FFmpeg's name of the video codec.
        rotation: degrees clockwise by which stored frames are turned to be upright: 0, 90, 180 or 270.
        has_audio: whether there is a sound track.
        name: what the clip is called in messages.
    """

    width: int
    height: int
    fps: Fraction
    num_frames: int | None
    seconds: float | None
    codec: str
    rotation: int
    has_audio: bool
    name: str


class ClipReader:
    """Reads one clip once, from its first frame to its last; a context manager.

    Frames come out upright (display matrix), in full-range RGB by the stream's own matrix and range, at their
    own time stamps (variable frame rates stay), and with square pixels: a sample aspect ratio between 1:4 and
    4:1 stretches the width. A frame of another size than the first is scaled to it. Interlaced frames are not
    deinterlaced, HDR is not tone-mapped, transparency is dropped.

    Args:
        source: a path of a regular file, or the bytes of one; never a URL.
        limits: how much is accepted, `LOCAL` for a user's own file, `UNTRUSTED` for somebody else's.
        name: what to call the clip in messages; its path where none is given.

    Raises:
        ClipError: the clip cannot be read at all, is over the limits, or holds no frame.
    """

    def __init__(self, source: Path | bytes, limits: ClipLimits = LOCAL, *, name: str | None = None) -> None:
        self._source = open_source(source, limits, name)
        self._clip: OpenClip | None = None
        self._limits = limits
        self._warning: str | None = None
        self._started = False
        try:
            self._open(limits)
        except BaseException:
            self.close()
            raise

    def _open(self, limits: ClipLimits) -> None:
        self._clip = clip = open_container(self._source, limits)
        self._decoder = FrameDecoder(clip, limits, self._source.name)
        frames = self._decoder.frames()
        first = next(frames, None)
        if first is None:
            why = "it is cut before its first frame" if clip.missing_bytes else "none can be decoded"
            raise ClipError(f"{self._source.name}: holds no video frame, {why}; give a complete clip")
        self._frames = chain([first], frames)
        self._orientation = frame_orientation(first)
        self._scaled, self._shown = _frame_sizes(self._source, clip, first)
        check_size(self._source.name, *self._shown, limits)
        self._converter = RgbConverter(*self._scaled)
        self.info = _describe(self._source, clip, self._shown, self._orientation)

    @property
    def warning(self) -> str | None:
        """After the last batch: one sentence where the clip was cut or damaged, else None."""
        return self._warning

    def batches(self, size: int) -> Iterator[FrameBatch]:
        """Yield the frames in batches of `size`, the last one shorter; only once a reader.

        Raises:
            ValueError: `size` is not positive, or the frames have been asked for before.
            ClipError: a limit is passed on the way.
        """
        if size < 1:
            raise ValueError(f"size must be at least 1 frame, not {size}")
        if self._started:
            raise ValueError(f"{self.info.name}: its frames can be read once; open another ClipReader")
        self._started = True
        return self._batches(size)

    def _batches(self, size: int) -> Iterator[FrameBatch]:
        timed = self._timed_frames()
        while True:
            pixels = np.empty((size, self.info.height, self.info.width, 3), np.uint8)
            seconds = np.empty(size, np.float64)
            count = 0
            for count, (time, frame) in enumerate(islice(timed, size), start=1):
                pixels[count - 1] = self._upright(frame)
                seconds[count - 1] = time
            if count:
                yield FrameBatch(frames=pixels[:count], timestamps=seconds[:count], fps=self.info.fps)
            if count < size:
                self._warning = self._judge()
                return

    def _timed_frames(self) -> Iterator[tuple[float, av.VideoFrame]]:
        origin: Fraction | None = None
        last = -1.0
        for frame in self._frames:
            if frame.pts is None or frame.time_base is None:
                seconds = max(0.0, last + float(1 / self.info.fps))
            else:
                stamp = frame.pts * frame.time_base
                origin = stamp if origin is None else origin
                seconds = float(stamp - origin)
            # Broken files repeat a stamp or step back; the frame is kept, just after the one before it.
            seconds = seconds if seconds > last else last + _SMALLEST_STEP
            if self._limits.max_seconds is not None and seconds > self._limits.max_seconds:
                allowed = self._limits.max_seconds
                raise ClipError(f"{self.info.name}: lasts longer than the {allowed:g} s that are accepted")
            last = seconds
            yield seconds, frame

    def _upright(self, frame: av.VideoFrame) -> NDArray[np.uint8]:
        try:
            rgb = self._converter.convert(frame)
        except (av.FFmpegError, ValueError) as error:
            reason = f"its pixel format {frame.format.name} cannot be converted to RGB"
            raise ClipError(f"{self.info.name}: {reason}; convert it to yuv420p") from error
        return self._orientation.upright(rgb[: self._shown[1], : self._shown[0]])

    def _judge(self) -> str | None:
        promised = f" of {self.info.num_frames}" if self.info.num_frames else ""
        read = f"{self._decoder.decoded}{promised} frames"
        missing = self._clip.missing_bytes if self._clip is not None else 0
        if missing:
            return f"{self.info.name}: is cut, {missing} bytes are missing at its end; {read} could be read"
        if self._decoder.damaged:
            return f"{self.info.name}: is damaged in {self._decoder.damaged} places; {read} could be read"
        return None

    def close(self) -> None:
        """Close the clip; further batches are not available."""
        if self._clip is not None:
            self._clip.container.close()
        self._source.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _frame_sizes(
    source: Source, clip: OpenClip, first: av.VideoFrame
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (width, height) of the stored frame in square pixels, and of the part of it that is shown."""
    aspect = clip.stream.sample_aspect_ratio
    if aspect and aspect != 1 and Fraction(1, _MAX_PIXEL_ASPECT) <= aspect <= _MAX_PIXEL_ASPECT:
        size = (max(1, round(first.width * aspect)), first.height)
        return size, size
    position = source.file.tell()
    shown = odd_aperture(source.file, source.size, first.width, first.height)
    source.file.seek(position)
    return (first.width, first.height), shown


def _describe(source: Source, clip: OpenClip, shown: tuple[int, int], orientation: Orientation) -> ClipInfo:
    width, height = reversed(shown) if orientation.transposed else shown
    return ClipInfo(
        width=width,
        height=height,
        fps=stream_fps(clip.stream),
        num_frames=clip.stream.frames or None,
        seconds=header_seconds(clip.container, clip.stream),
        codec=clip.stream.codec_context.codec.canonical_name,
        rotation=orientation.rotation,
        has_audio=bool(clip.container.streams.audio),
        name=source.name,
    )
