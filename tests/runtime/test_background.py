"""Threads change when things happen, never what happens."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from foresight.runtime.background import ReadAhead, WriteBehind


def foresight_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("foresight-")]


def test_items_keep_their_order() -> None:
    written: list[int] = []
    with ReadAhead(iter(range(100)), 3) as items, WriteBehind(written.append, 3) as writer:
        for item in items:
            writer.put(item)
    assert written == list(range(100))
    assert foresight_threads() == []


def test_no_more_is_read_than_asked_for() -> None:
    taken: list[int] = []

    def count() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    with ReadAhead(count(), 2) as items:
        assert next(items) == 0
    # One was asked for, two wait in the queue, one waits for a place in it.
    assert len(taken) <= 4
    assert foresight_threads() == []


def test_an_error_of_the_reader_comes_after_the_items_before_it() -> None:
    def fail() -> Iterator[int]:
        yield 1
        raise ValueError("cut here")

    with ReadAhead(fail(), 4) as items:
        assert next(items) == 1
        with pytest.raises(ValueError, match="cut here"):
            next(items)
        assert list(items) == []


def test_an_error_of_the_writer_reaches_whoever_puts() -> None:
    def fail(_: int) -> None:
        raise OSError("disk full")

    def put_many() -> None:
        with WriteBehind(fail, 2) as writer:
            for item in range(1000):
                writer.put(item)

    with pytest.raises(OSError, match="disk full"):
        put_many()
    assert foresight_threads() == []


def test_an_error_of_the_last_item_is_not_lost() -> None:
    def fail(_: int) -> None:
        raise OSError("disk full")

    writer = WriteBehind(fail, 2)
    with pytest.raises(OSError, match="disk full"), writer:
        writer.put(1)


def test_after_an_error_in_the_block_the_rest_is_dropped() -> None:
    release, written = threading.Event(), []

    def slow(item: int) -> None:
        release.wait(5)
        written.append(item)

    def interrupted() -> None:
        with WriteBehind(slow, 8) as writer:
            for item in range(5):
                writer.put(item)
            threading.Timer(0.05, release.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(written) <= 1
    assert foresight_threads() == []
