"""One line in the log for every request that a client made, and the id by which both know it."""

from __future__ import annotations

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["RequestLog"]

_LOG = logging.getLogger(__name__)
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_STARTS = ("http.response.start", "websocket.accept", "websocket.http.response.start")
# Asked every few seconds by whatever watches the server.
_QUIET = ("/health", "/ready", "/metrics")


class RequestLog:
    """ASGI middleware: gives requests an id, the client's own where it is harmless, and logs their end.

    The id is in the header X-Request-Id of every answer and in `scope["state"]["request_id"]`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        begun, status = time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] in _STARTS:
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
                status = message.get("status", 101)
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            if scope["path"] not in _QUIET:
                method, seconds = scope.get("method", "WS"), time.perf_counter() - begun
                _LOG.info("%s %s %r %d in %.3f s", request_id, method, scope["path"][:200], status, seconds)
