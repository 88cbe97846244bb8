"""Who is let in: on every route there is, enumerated from the application."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.routing import APIRoute
from starlette.routing import Route, WebSocketRoute
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from foresight.runtime.access import AccessRules
from foresight.runtime.serve import main
from foresight.runtime.server_options import ServeError, ServeOptions

Serve = Callable[..., Any]
KEY = "correct-horse-battery"


@pytest.fixture
def guarded(serve: Serve) -> Any:
    return serve(rules=AccessRules(keys=("another-key", KEY)))


def all_routes(app: Any) -> list[Any]:
    """Every route, those of included routers and of nested applications too."""
    found, waiting = [], [app.router]
    while waiting:
        for route in waiting.pop().routes:
            inner = getattr(route, "original_router", None) or getattr(route, "app", None)
            if isinstance(route, Route | APIRoute | WebSocketRoute):
                found.append(route)
            elif inner is not None and hasattr(inner, "routes"):
                waiting.append(inner)
            else:
                raise AssertionError(f"{route!r}: what kind of route is this?")
    return found


def test_every_route_but_health_asks_for_a_key(guarded: Any) -> None:
    routes = all_routes(guarded.app)
    paths = {route.path for route in routes}
    expected = {
        "/v1/videos/sync",
        "/v1/realtime/video",
        "/v1/models",
        "/health",
        "/ready",
        "/metrics",
        "/docs",
    }
    assert expected | {"/openapi.json"} <= paths
    asked = 0
    for route in routes:
        if isinstance(route, WebSocketRoute):
            assert status_of_stream(guarded, route.path) == 401
            asked += 1
            continue
        for method in route.methods or {"GET"}:
            for headers in ({}, {"X-API-Key": "wrong"}, {"Authorization": f"Basic {KEY}"}, {"X-API-Key": ""}):
                status, answered, _ = guarded.request(method, route.path, headers=headers)
                if (method, route.path) == ("GET", "/health"):
                    assert status == 200
                    continue
                assert (status, answered["WWW-Authenticate"]) == (401, "Bearer")
                asked += 1
    assert asked > 4 * (len(routes) - 2)
    assert guarded.request("GET", "/there/is/no/such/route")[0] == 401
    assert guarded.request("POST", "/health")[0] == 401


def test_the_key_opens_them(guarded: Any) -> None:
    for headers in ({"Authorization": f"Bearer {KEY}"}, {"X-API-Key": KEY}, {"X-API-Key": "another-key"}):
        for path in ("/ready", "/v1/models", "/metrics", "/docs", "/openapi.json"):
            assert guarded.request("GET", path, headers=headers)[0] == 200
        assert guarded.request("POST", "/v1/videos/sync", headers=headers)[0] == 415
    with connect(stream_url(guarded), additional_headers={"X-API-Key": KEY}) as stream:
        stream.send('{"type": "start"}')
        assert "ready" in str(stream.recv(10))


def test_pages_of_other_origins_are_kept_out(serve: Serve) -> None:
    server = serve(rules=AccessRules(origins=("https://example.org",)))
    own = f"http://127.0.0.1:{server.port}"
    for origin, let_in in (
        (own, True),
        ("https://example.org", True),
        ("http://example.org", False),
        ("https://evil.example", False),
        ("null", False),
        ("http://127.0.0.1:1", False),
    ):
        status = server.request("POST", "/v1/videos/sync", headers={"Origin": origin})[0]
        assert status == (415 if let_in else 403)
        assert status_of_stream(server, "/v1/realtime/video", origin) == (101 if let_in else 403)
        answered = server.request("GET", "/v1/models", headers={"Origin": origin})[1]
        assert answered["Access-Control-Allow-Origin"] is None


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "", "127.0.0.1.evil.example"])
def test_a_name_that_was_made_to_resolve_to_this_machine_is_not_answered(host: str, serve: Serve) -> None:
    server = serve()
    assert server.request("GET", "/v1/models", headers={"Host": host})[0] == 421
    assert server.request("GET", "/v1/models", headers={"Host": "localhost"})[0] == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.org"])
def test_an_open_host_needs_a_key_or_an_explicit_word(
    host: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FORESIGHT_API_KEY", raising=False)
    assert main(["--host", host]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"foresight-serve: error: host {host}: others can reach it; give --api-key")
    assert printed.count("\n") == 1
    ServeOptions(host=host, api_key=KEY).check()
    ServeOptions(host=host, allow_open_host=True).check()
    for loopback in ("127.0.0.1", "127.0.0.2", "::1", "localhost"):
        ServeOptions(host=loopback).check()


@pytest.mark.parametrize(
    "options",
    [
        {"engine_sha256": "0" * 64},
        {"api_key": "short"},
        {"api_key": "with a space"},
        {"port": 65536},
        {"queue": 0},
        {"allow_origin": ("*",)},
        {"allow_origin": ("https://example.org/",)},
        {"drain_seconds": -1.0},
    ],
)
def test_options_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(ServeError, match=next(iter(options))):
        ServeOptions(**options).check()


def stream_url(server: Any, path: str = "/v1/realtime/video") -> str:
    return f"ws://127.0.0.1:{server.port}{path}"


def status_of_stream(server: Any, path: str, origin: Any = None) -> int:
    try:
        with connect(stream_url(server, path), origin=origin):
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code
