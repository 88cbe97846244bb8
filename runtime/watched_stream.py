"""A streamed response that ends when its client leaves, and waiting that does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from foresight.runtime.refusals import RefusedError

__all__ = ["WatchedStream", "unless_left"]

T = TypeVar("T")


class WatchedStream(Response):
    """Sends `first` and the other parts of a generator, which is closed in any case.

    `first` must come from the generator: what a generator does at its end is not done by one that never began.
    """

    def __init__(
        self,
        first: bytes,
        parts: AsyncGenerator[bytes],
        *,
        media_type: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._first, self._parts = first, parts
        self.status_code, self.media_type, self.background = 200, media_type, None
        self.init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        try:
            await unless_left(self._send_all(send), receive)
        except RefusedError:
            return  # nobody is there to be told
        finally:
            await self._parts.aclose()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self._first, "more_body": True})
        async for part in self._parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def unless_left(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    """What `work` returns; it is cancelled when the client leaves, and RefusedError (499) raised."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise RefusedError(499, "client_left", "the client has left")
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
