"""How large a request may be and how long its parts may take, for every route."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from foresight.runtime.refusals import RefusedError
from foresight.runtime.refused_response import send_refusal

__all__ = ["RequestLimits", "SizeLimits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeLimits:
    """Bytes of a body, seconds until it must be there whole, and seconds that one send may wait for a client.

    `linger_seconds` and `linger_bytes` are what is still taken of a body that was refused, and thrown away.
    """

    max_body_bytes: int
    body_seconds: float = 60.0
    send_seconds: float = 30.0
    linger_seconds: float = 1.0
    linger_bytes: int = 2**23


class RequestLimits:
    """ASGI middleware: cuts off a body at its limits of size and time, and gives up clients that do not read."""

    def __init__(self, app: ASGIApp, limits: SizeLimits) -> None:
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._limits)
        try:
            exchange.check_announced()
            await self._app(scope, exchange.receive, exchange.send)
        except RefusedError as refusal:
            if exchange.started:
                raise
            await send_refusal(refusal, scope, exchange.receive, exchange.send)


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: SizeLimits) -> None:
        self._headers = Headers(scope=scope)
        self._receive, self._send, self._limits = receive, send, limits
        self._deadline = time.monotonic() + limits.body_seconds
        self._received, self._whole, self._asked = 0, not _has_body(self._headers), False
        self.started = False

    def check_announced(self) -> None:
        announced = self._headers.get("content-length", "")
        if announced.isdigit() and int(announced) > self._limits.max_body_bytes:
            raise self._too_large()

    async def receive(self) -> Message:
        if self._whole:
            return await self._receive()
        self._asked = True
        try:
            async with asyncio.timeout(max(0.0, self._deadline - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            seconds = self._limits.body_seconds
            raise RefusedError(408, "too_slow", f"the body was not there within {seconds:g} s") from None
        if message["type"] == "http.request":
            self._received += len(message.get("body", b""))
            self._whole = not message.get("more_body", False)
            if self._received > self._limits.max_body_bytes:
                raise self._too_large()
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            if not self._whole:
                MutableHeaders(scope=message)["Connection"] = "close"
        elif not self._whole and not message.get("more_body", False):
            # A connection that is closed on unread data is reset, and the client never sees why.
            await self._send_in_time({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send_in_time(message)

    async def _send_in_time(self, message: Message) -> None:
        async with asyncio.timeout(self._limits.send_seconds):
            await self._send(message)

    async def _linger(self) -> None:
        if not self._asked and "100-continue" in self._headers.get("expect", "").lower():
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limits.linger_seconds):
                message, left = await self._receive(), self._limits.linger_bytes
                while left > 0 and message.get("more_body", False):
                    message = await self._receive()
                    left -= len(message.get("body", b""))

    def _too_large(self) -> RefusedError:
        mebibytes = self._limits.max_body_bytes / 2**20
        return RefusedError(413, "too_large", f"the body exceeds {mebibytes:.4g} MiB; send a smaller clip")


def _has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
