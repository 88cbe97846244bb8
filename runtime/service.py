"""The application: routes about the server itself, the video routes, and the guards around all of them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from foresight import __version__
from foresight.runtime.access import AccessGuard, AccessRules
from foresight.runtime.api_page import render_api_page
from foresight.runtime.ledger import LEDGER_STAGES, OVERHEAD_LIMIT_PERCENT
from foresight.runtime.realtime import router as realtime_router
from foresight.runtime.refusals import RefusedError
from foresight.runtime.refused_response import refused_response
from foresight.runtime.request_limits import RequestLimits, SizeLimits
from foresight.runtime.request_log import RequestLog
from foresight.runtime.service_state import ServiceState
from foresight.runtime.video_route import router as video_router

__all__ = ["create_app"]

_LOG = logging.getLogger(__name__)
_FORM_BYTES = 2**16


def create_app(state: ServiceState, rules: AccessRules, *, sizes: SizeLimits | None = None) -> FastAPI:
    """The ASGI application of one server; starting it starts the worker, stopping it stops the worker.

    `sizes` bound every body; by default a clip of the largest size and its form fit.
    """
    app = FastAPI(
        title="Foresight",
        version=__version__,
        description="Clips and live video, reconstructed from what two vision encoders see of them.",
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan,
    )
    app.state.service = state
    most = state.limits.clip.max_bytes or 2**26
    # The last one is the outermost: what a guard turns away is cut off like anything else.
    app.add_middleware(_RequestCount, state=state)
    app.add_middleware(AccessGuard, rules=rules)
    app.add_middleware(RequestLimits, limits=sizes or SizeLimits(max_body_bytes=most + _FORM_BYTES))
    app.add_middleware(RequestLog)
    app.add_exception_handler(RefusedError, _refused)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _failed)
    _add_service_routes(app, state)
    app.include_router(video_router)
    app.include_router(realtime_router)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    state: ServiceState = app.state.service
    state.worker.start()
    state.decoder.prepare()
    try:
        yield
    finally:
        state.decoder.close()
        state.worker.stop()


def _add_service_routes(app: FastAPI, state: ServiceState) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the process answers; the one route that asks for no key."""
        return {"status": "alive"}

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        """Whether requests are taken: after the warm-up, not while draining, not after a device fault."""
        state.refuse_unready()
        return {"status": "ready"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """What is served: stack, adapter, backend, stages, and the limits of requests."""
        return {"object": "list", "data": [_describe(state)]}

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Counters and times for Prometheus."""
        return Response(state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def docs() -> HTMLResponse:
        """The API as a page that loads nothing from elsewhere."""
        return HTMLResponse(
            render_api_page(app.openapi()),
            headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"},
        )


def _describe(state: ServiceState) -> dict[str, Any]:
    models, limits = state.ready_models(), state.limits
    config = models.config
    described = {
        "id": f"foresight-{config.name}",
        "object": "model",
        "modes": list(models.modes),
        "stages": list(LEDGER_STAGES),
        "overhead_limit_percent": OVERHEAD_LIMIT_PERCENT,
        "frame_size": {"width": config.size[1], "height": config.size[0]},
        "chunk_frames": config.num_frames,
        "limits": {
            "max_bytes": limits.clip.max_bytes,
            "max_pixels": limits.clip.max_pixels,
            "max_frames": limits.clip.max_frames,
            "max_seconds": limits.clip.max_seconds,
            "max_decode_seconds": limits.clip.max_decode_seconds,
            "max_steps": limits.max_steps,
            "queue": limits.queue,
            "sessions": limits.sessions,
            "session_seconds": limits.session_seconds,
        },
    }
    return described | dict(models.describe())


class _RequestCount:
    """ASGI middleware that knows how many requests are being answered, for the end of a drain."""

    def __init__(self, app: ASGIApp, state: ServiceState) -> None:
        self._app, self._state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        self._state.requests += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._state.requests -= 1


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return refused_response(error, request.scope["state"]["request_id"])


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    refusal = RefusedError(error.status_code, "http_error", str(error.detail))
    response = refused_response(refusal, request.scope["state"]["request_id"])
    response.headers.update(error.headers or {})
    return response


def _failed(request: Request, _error: Exception) -> JSONResponse:
    # Starlette logs the error itself; a client learns nothing of it but the id.
    request_id = request.scope["state"]["request_id"]
    return refused_response(RefusedError(500, "internal", "the request failed"), request_id)
