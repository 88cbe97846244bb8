"""What clients send, decoded in processes of its own: a crash, a flood or an exploit ends there.

Every clip gets a fresh process, one of which is always ready, because starting one takes a third of a second.
What comes back from it is checked like anything else from outside.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from foresight.media import ClipError, ClipLimits, FrameBatch
from foresight.runtime.decode_process import DecodeProcess

__all__ = ["ClipDecoder", "DecodedClip", "PictureDecoder", "PictureInfo", "refuse_long_sides"]

_CLIP_CPU_SECONDS, _SESSION_CPU_SECONDS = 40, 3600
_MAX_BATCH = 8
# More than that h264 does not hold, and JPEG four times as many.
_MAX_SIDE = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureInfo:
    """Size of a clip's upright frames in pixels, its average frame rate, and how many frames its header promises."""

    width: int
    height: int
    fps: Fraction
    num_frames: int | None


class DecodedClip:
    """A clip whose frames come from a decoding process as they are asked for; `close` ends the process."""

    def __init__(self, process: DecodeProcess, limits: ClipLimits) -> None:
        self._process, self._limits = process, limits
        self.warning: str | None = None
        self.info = self._read_info()

    def batches(self) -> Iterator[FrameBatch]:
        """The frames, once; raises ClipError for what the decoder refuses on the way, and where it dies."""
        total, width, height = 0, self.info.width, self.info.height
        while "end" not in (message := self._message()):
            count, times = message.get("frames"), message.get("timestamps")
            if not isinstance(count, int) or not 0 < count <= _MAX_BATCH:
                raise _impossible()
            total += count
            if self._limits.max_frames is not None and total > self._limits.max_frames:
                raise _impossible()
            pixels = np.frombuffer(self._process.read(count * height * width * 3), np.uint8)
            frames = pixels.reshape(count, height, width, 3)
            yield self._batch(frames, times)
        warning = message["end"]
        self.warning = _one_line(warning) if isinstance(warning, str) else None

    def stop(self) -> None:
        """End the decoding process, in the middle of the clip too; any thread may call it."""
        self._process.kill()

    def close(self) -> None:
        """Let go of the process; for the thread that has read the frames, or where none has."""
        self._process.close()

    def _batch(self, frames: NDArray[np.uint8], times: object) -> FrameBatch:
        try:
            timestamps = np.array(times, np.float64)
            return FrameBatch(frames=frames, timestamps=timestamps, fps=self.info.fps)
        except (TypeError, ValueError) as error:
            raise _impossible() from error

    def _read_info(self) -> PictureInfo:
        info: Any = self._message().get("info")
        try:
            width, height, fps = int(info["width"]), int(info["height"]), Fraction(info["fps"])
            frames = None if info["num_frames"] is None else int(info["num_frames"])
        except (TypeError, KeyError, ValueError, ZeroDivisionError) as error:
            raise _impossible() from error
        most = self._limits.max_pixels or 2**32
        if min(width, height) < 1 or width * height > most or not 0 < fps <= 1000:
            raise _impossible()
        refuse_long_sides(width, height)
        return PictureInfo(width=width, height=height, fps=fps, num_frames=frames)

    def _message(self) -> dict[str, Any]:
        message = self._process.message()
        if "error" in message:
            raise ClipError(_one_line(str(message["error"])))
        return message


class ClipDecoder:
    """Opens clips, each in a fresh process with one more kept ready; any thread may call it."""

    def __init__(self, limits: ClipLimits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._spare: DecodeProcess | None = None
        self._closed = False

    def open(self, file: BinaryIO) -> DecodedClip:
        """Give a clip's bytes to a process and wait for its first frame; raises ClipError in one line."""
        process = self._take()
        try:
            process.feed(file)
            return DecodedClip(process, self._limits)
        except BaseException:
            process.close()
            raise
        finally:
            self.prepare()

    @property
    def ready(self) -> bool:
        """Whether the process of the next clip has been started."""
        return self._spare is not None

    def prepare(self) -> None:
        """Start the process of the next clip."""
        with self._lock:
            if self._spare is None and not self._closed:
                self._spare = self._start()

    def close(self) -> None:
        """End the process that waits."""
        with self._lock:
            self._closed = True
            spare, self._spare = self._spare, None
        if spare is not None:
            spare.close()

    def _take(self) -> DecodeProcess:
        with self._lock:
            spare, self._spare = self._spare, None
        return spare or self._start()

    def _start(self) -> DecodeProcess:
        return DecodeProcess("clip", asdict(self._limits) | {"cpu_seconds": _CLIP_CPU_SECONDS})


class PictureDecoder:
    """Decodes the JPEG and PNG pictures of one live stream, in one process for all of them."""

    def __init__(self, limits: ClipLimits) -> None:
        self._max_pixels = limits.max_pixels or 2**32
        self._process = DecodeProcess(
            "images", {"max_pixels": self._max_pixels, "cpu_seconds": _SESSION_CPU_SECONDS}
        )

    def decode(self, content: bytes) -> NDArray[np.uint8]:
        """A picture's pixels uint8 [H, W, 3]; raises ClipError for anything else and for too many pixels."""
        self._process.write(len(content).to_bytes(4, "big") + content)
        message = self._process.message()
        if "error" in message:
            raise ClipError(_one_line(str(message["error"])))
        try:
            height, width = (int(side) for side in message["size"])
            if min(height, width) < 1 or height * width > self._max_pixels:
                raise ValueError(f"{height}x{width}")
        except (KeyError, TypeError, ValueError) as error:
            raise _impossible() from error
        refuse_long_sides(width, height)
        return np.frombuffer(self._process.read(height * width * 3), np.uint8).reshape(height, width, 3)

    def close(self) -> None:
        """End the process."""
        self._process.close()


def refuse_long_sides(width: int, height: int) -> None:
    """Raise ClipError for frames that no answer can hold."""
    if max(width, height) > _MAX_SIDE:
        raise ClipError(f"frames of {width}x{height}: a side has at most {_MAX_SIDE} pixels")


def _impossible() -> ClipError:
    return ClipError("clip: its decoder gave an answer that cannot be; give another clip")


def _one_line(text: str) -> str:
    return " ".join(text.split())[:500]
