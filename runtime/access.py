"""Who is let in: keys, host names and origins, asked before any route sees a request.

Everything but `GET /health` is denied by default; there is no list of protected routes that one could forget to
extend. It knows no route but that one.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from foresight.runtime.refusals import RefusedError
from foresight.runtime.refused_response import send_refusal

__all__ = ["AccessGuard", "AccessRules"]

_LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")
_SAFE_METHODS = ("GET", "HEAD")


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessRules:
    """Who is let in.

    Args:
        keys: each of them opens every route; none are asked for where this is empty.
        origins: web origins besides the server's own whose pages may post and open streams.
        hostnames: names by which the server may be addressed; any where this is None. A page of another site
            whose name was made to resolve to 127.0.0.1 is kept out by them.
    """

    keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    hostnames: tuple[str, ...] | None = _LOCAL_NAMES

    @classmethod
    def on_loopback(cls, *, keys: Sequence[str], origins: Sequence[str], names: Sequence[str]) -> AccessRules:
        """The rules of a server that only this machine can reach, under its local names and `names`."""
        return cls(keys=tuple(keys), origins=tuple(origins), hostnames=(*_LOCAL_NAMES, *names))

    def refusal(self, scope: Scope) -> RefusedError | None:
        """Why a request is kept out; None for one that is let in."""
        headers = Headers(scope=scope)
        if scope["type"] == "http" and (scope["method"], scope["path"]) == ("GET", "/health"):
            return None
        if not self._knows_host(headers.get("host", "")):
            return RefusedError(421, "wrong_host", "this server is not addressed by that name")
        if not self._opens(headers):
            return RefusedError(
                401, "no_key", "give the key as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'"
            )
        changes = scope["type"] == "websocket" or scope["method"] not in _SAFE_METHODS
        if changes and not self._knows_origin(headers):
            return RefusedError(403, "wrong_origin", "pages of that origin may not use this server")
        return None

    def _opens(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        # Every key is compared, whole, so that the time taken says nothing of any.
        matches = [hmac.compare_digest(given.encode(), key.encode()) for key in self.keys]
        return any(matches) or not self.keys

    def _knows_host(self, host: str) -> bool:
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        return self.hostnames is None or name.lower() in self.hostnames

    def _knows_origin(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        if origin is None or origin in self.origins:
            return True
        return urlsplit(origin).netloc.lower() == headers.get("host", "").lower() != ""


class AccessGuard:
    """ASGI middleware that answers for the application where the rules keep a request out."""

    def __init__(self, app: ASGIApp, rules: AccessRules) -> None:
        self._app, self._rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        refusal = self._rules.refusal(scope) if scope["type"] in ("http", "websocket") else _UNKNOWN
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await send_refusal(refusal, scope, receive, send)


_UNKNOWN = RefusedError(400, "unknown_protocol", "only HTTP and WebSocket are spoken here")
