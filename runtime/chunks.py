"""A clip's frames cut into the chunks that the models see; knows nothing of models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from foresight.media import ClipError, FrameBatch

__all__ = ["Chunk", "ChunkBuilder", "split_into_chunks"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chunk:
    """Consecutive frames of a clip; the first of them is also the last of the chunk before.

    `frames` is uint8 [num_frames, H, W, 3], a short last chunk filled up by repeating its last frame. Chunk k
    begins at frame k * (num_frames - 1) of the clip. `batch` holds the frames that are this chunk's own to
    emit: neither the overlap nor the filling.
    """

    index: int
    frames: NDArray[np.uint8]
    batch: FrameBatch

    @property
    def emitted(self) -> slice:
        """Which of `frames` are the chunk's own to emit."""
        overlap = 0 if self.index == 0 else 1
        return slice(overlap, overlap + len(self.batch))


def split_into_chunks(batches: Iterable[FrameBatch], num_frames: int) -> Iterator[Chunk]:
    """Cut batches of any lengths into chunks of `num_frames` frames that overlap by one.

    Holds one chunk and one batch at a time. Raises ValueError for less than 2 frames a chunk and ClipError
    when the frames change their size.
    """
    builder = ChunkBuilder(num_frames)
    for batch in batches:
        for frame, timestamp in zip(batch.frames, batch.timestamps, strict=True):
            chunk = builder.add(frame, timestamp, batch.fps)
            if chunk is not None:
                yield chunk
    last = builder.finish()
    if last is not None:
        yield last


class ChunkBuilder:
    """Takes frames one by one and gives a chunk of `num_frames` whenever one is complete."""

    def __init__(self, num_frames: int) -> None:
        if num_frames < 2:
            raise ValueError(f"num_frames {num_frames}: a chunk needs one frame of overlap and a new one")
        self._num_frames, self._index, self._fps = num_frames, 0, Fraction(1)
        self._frames: list[NDArray[np.uint8]] = []
        self._timestamps: list[float] = []

    def add(self, frame: NDArray[np.uint8], timestamp: float, fps: Fraction) -> Chunk | None:
        """Take a frame uint8 [H, W, 3]; raises ClipError for one of another size than those before."""
        frames = self._frames
        if frames and frame.shape != frames[0].shape:
            raise ClipError(f"frames change from {_size(frames[0])} to {_size(frame)} within the clip")
        frames.append(frame)
        self._timestamps.append(timestamp)
        self._fps = fps
        if len(frames) < self._num_frames:
            return None
        chunk = _chunk(self._index, frames, self._timestamps, fps, self._num_frames)
        self._index, self._frames, self._timestamps = self._index + 1, frames[-1:], self._timestamps[-1:]
        return chunk

    def finish(self) -> Chunk | None:
        """The last chunk, filled up; None where no new frame is left."""
        if len(self._frames) <= min(self._index, 1):
            return None
        return _chunk(self._index, self._frames, self._timestamps, self._fps, self._num_frames)


def _chunk(
    index: int, frames: list[NDArray[np.uint8]], timestamps: list[float], fps: Fraction, num_frames: int
) -> Chunk:
    filled = np.stack([*frames, *[frames[-1]] * (num_frames - len(frames))])
    own = slice(0 if index == 0 else 1, len(frames))
    batch = FrameBatch(frames=filled[own], timestamps=np.array(timestamps[own], np.float64), fps=fps)
    return Chunk(index=index, frames=filled, batch=batch)


def _size(frame: NDArray[np.uint8]) -> str:
    return f"{frame.shape[1]}x{frame.shape[0]}"
