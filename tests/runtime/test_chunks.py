"""Chunks show every frame of a clip exactly once, in order, whatever batches it comes in."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest

from foresight.media import FrameBatch
from foresight.runtime.chunks import split_into_chunks


def numbered(count: int, batch: int, size: tuple[int, int] = (2, 3)) -> Iterator[FrameBatch]:
    """Frames whose pixels are their own number modulo 256."""
    for start in range(0, count, batch):
        numbers = np.arange(start, min(count, start + batch))
        pixels = np.broadcast_to(
            (numbers % 256).astype(np.uint8)[:, None, None, None], (len(numbers), *size, 3)
        )
        yield FrameBatch(frames=pixels.copy(), timestamps=numbers / 24, fps=Fraction(24))


@pytest.mark.parametrize("batch", [1, 3, 8, 50])
@pytest.mark.parametrize(
    ("count", "emitted"),
    [(1, [1]), (5, [5]), (9, [9]), (10, [9, 1]), (17, [9, 8]), (18, [9, 8, 1]), (1000, [9, *[8] * 123, 7])],
)
def test_every_frame_is_emitted_once(count: int, emitted: list[int], batch: int) -> None:
    chunks = list(split_into_chunks(numbered(count, batch), 9))
    assert [len(chunk.batch) for chunk in chunks] == emitted
    assert [chunk.index for chunk in chunks] == list(range(len(emitted)))
    frames = np.concatenate([chunk.batch.frames[:, 0, 0, 0] for chunk in chunks])
    np.testing.assert_array_equal(frames, np.arange(count) % 256)
    times = np.concatenate([chunk.batch.timestamps for chunk in chunks])
    np.testing.assert_allclose(times, np.arange(count) / 24)


def test_a_chunk_begins_with_the_last_frame_of_the_one_before() -> None:
    chunks = list(split_into_chunks(numbered(20, 4), 9))
    assert [chunk.frames[:, 0, 0, 0].tolist() for chunk in chunks] == [
        list(range(9)),
        list(range(8, 17)),
        [16, 17, 18, 19, 19, 19, 19, 19, 19],
    ]
    for chunk in chunks:
        np.testing.assert_array_equal(chunk.frames[chunk.emitted], chunk.batch.frames)


def test_no_frames_give_no_chunks() -> None:
    assert list(split_into_chunks(iter(()), 9)) == []


def test_the_next_chunk_is_not_waited_for() -> None:
    batches = numbered(1000, 8)
    first = next(split_into_chunks(batches, 9))
    assert len(first.batch) == 9
    assert next(batches).frames[0, 0, 0, 0] == 16


def test_a_change_of_size_is_refused() -> None:
    batches = [*numbered(3, 3), *numbered(3, 3, size=(4, 4))]
    with pytest.raises(ValueError, match="from 3x2 to 4x4"):
        list(split_into_chunks(batches, 9))


def test_a_chunk_of_one_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="num_frames 1"):
        list(split_into_chunks(numbered(3, 3), 1))
