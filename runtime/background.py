"""Reading ahead and writing behind in threads, so that files do not hold up the models."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

__all__ = ["ReadAhead", "WriteBehind"]

T = TypeVar("T")


class ReadAhead(Iterator[T], Generic[T]):
    """Takes items from an iterator in a thread, at most `depth` ahead of whoever asks for them.

    An error of the iterator is raised where the item would have come. Leaving the with-block ends the thread,
    in the middle of the iterator too.
    """

    def __init__(self, items: Iterator[T], depth: int) -> None:
        self._items = items
        self._queue: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(depth)
        self._stop = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="foresight-read", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        _drain(self._queue)
        self._thread.join()

    def __next__(self) -> T:
        if self._ended:
            raise StopIteration
        item = self._queue.get()
        if isinstance(item, tuple):
            return item[0]
        self._ended = True
        raise StopIteration if item is None else item

    def _run(self) -> None:
        end: BaseException | None = None
        try:
            for item in self._items:
                self._queue.put((item,))
                if self._stop.is_set():
                    return
        except BaseException as error:  # it is raised again in the thread that reads
            end = error
        self._queue.put(end)


class WriteBehind(Generic[T]):
    """Hands items to `write` in a thread, at most `depth` behind whoever puts them.

    An error of `write` is raised at the next `put` or at the end of the with-block, which waits for the items
    that are still to be written; after an error inside the block they are dropped.
    """

    def __init__(self, write: Callable[[T], None], depth: int) -> None:
        self._write = write
        self._queue: queue.Queue[tuple[T] | None] = queue.Queue(depth)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="foresight-write", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def put(self, item: T) -> None:
        """Queue an item; waits while `depth` items are unwritten."""
        self._raise_error()
        self._queue.put((item,))

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            _drain(self._queue)
        self._queue.put(None)
        self._thread.join()
        if error is None:
            self._raise_error()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            # After an error the queue is still emptied, or the thread that puts would wait for ever.
            if self._error is None:
                try:
                    self._write(item[0])
                except BaseException as error:  # it is raised again in the thread that puts
                    self._error = error


def _drain(items: queue.Queue[T]) -> None:
    while True:
        try:
            items.get_nowait()
        except queue.Empty:
            return
