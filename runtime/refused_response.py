"""How a refusal is told to a client: one line in JSON, over HTTP or in place of a WebSocket's handshake."""

from __future__ import annotations

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from foresight.runtime.refusals import RefusedError

__all__ = ["refused_response", "send_refusal"]


def refused_response(refusal: RefusedError, request_id: str = "") -> JSONResponse:
    """The response that says why a request is refused, and when it is worth trying again."""
    headers = {}
    if refusal.retry_after is not None:
        headers["Retry-After"] = str(refusal.retry_after)
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    error = {"code": refusal.code, "message": refusal.message, "request_id": request_id}
    return JSONResponse({"error": error}, status_code=refusal.status, headers=headers)


async def send_refusal(refusal: RefusedError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request, or refuse a WebSocket before it is open."""
    response = refused_response(refusal, scope.get("state", {}).get("request_id", ""))
    if scope["type"] == "http" or "websocket.http.response" in scope.get("extensions", {}):
        await response(scope, receive, send)
    else:
        await send({"type": "websocket.close", "code": 1008, "reason": refusal.message})
