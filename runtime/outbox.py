"""What the engine's threads make for a client, on its way to the event loop that sends it."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Generic, TypeVar

__all__ = ["ClientStalledError", "Outbox"]

T = TypeVar("T")


class ClientStalledError(Exception):
    """A client has not read what was made for it for so long that it is given up."""


class Outbox(Generic[T]):
    """A queue from threads to a coroutine, bounded by the size of what waits in it.

    A thread that puts waits while `max_size` is exceeded, at most `stall_seconds` in all: a client that does not
    read must hold up neither the models nor the memory.
    """

    def __init__(self, *, max_size: int = 2**24, stall_seconds: float = 10.0) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[T, int] | Exception | None] = asyncio.Queue()
        self._room = threading.Condition()
        self._size, self._max_size, self._stall_seconds = 0, max_size, stall_seconds
        self._closed = False

    def put(self, item: T, size: int) -> None:
        """Append an item that counts as `size` bytes; raises ClientStalledError. For threads."""
        with self._room:
            begun = time.monotonic()
            fits = self._room.wait_for(self._has_room, self._stall_seconds)
            self._stall_seconds = max(0.0, self._stall_seconds - (time.monotonic() - begun))
            if not fits or self._closed:
                raise ClientStalledError(f"{self._size} bytes wait for a client that does not read them")
            self._size += size
        self._hand_over((item, size))

    def finish(self, error: Exception | None = None) -> None:
        """Say that nothing more comes, because of `error` if one is given. For threads."""
        self._hand_over(error)

    async def get(self) -> T | None:
        """The next item, or None at the end; raises the error that ended it."""
        entry = await self._queue.get()
        if isinstance(entry, tuple):
            with self._room:
                self._size -= entry[1]
                self._room.notify()
            return entry[0]
        if entry is not None:
            raise entry
        return None

    def close(self) -> None:
        """Take nothing more; a thread that waits to put goes on at once. For the coroutine."""
        with self._room:
            self._closed = True
            self._room.notify_all()

    def _has_room(self) -> bool:
        return self._closed or self._size < self._max_size

    def _hand_over(self, entry: tuple[T, int] | Exception | None) -> None:
        # After the loop has ended nobody is left to tell.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue.put_nowait, entry)
