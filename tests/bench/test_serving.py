"""The server's benchmark: what it measures of a good server, what it refuses to write down, and its client."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from bench import serving
from bench.serving import measure
from bench.serving_client import Answer, Client, Server, Upload
from foresight.media import UNTRUSTED
from foresight.runtime.access import AccessRules
from foresight.runtime.frame_records import END, ERROR, encode_jpeg, frame_record, json_record, read_records

if TYPE_CHECKING:
    from ..runtime.serve.running_server import RunningServer

CLIP = Path(__file__).parents[2] / "examples/clip.mp4"
JPEG = encode_jpeg(np.zeros((2, 2, 3), np.uint8))


def answer(status: int, *, retry_after: int | None = None) -> Answer:
    return Answer(status=status, seconds=0.5, size=3, retry_after=retry_after)


def records(kind: int) -> bytes:
    return frame_record(0, 0.0, JPEG) + frame_record(1, 0.5, JPEG) + json_record(kind, {})


class ScriptedServer:
    """Stands for `bench.serving_client.Server`: answers at once, and as a server must unless it is told otherwise."""

    listening_seconds = 0.1

    def __init__(self, **otherwise: Any) -> None:
        self.otherwise, self.ended, self.posts = otherwise, False, count(1)

    def ready_seconds(self) -> float:
        return 0.2

    def post(self, _clip: bytes) -> Answer:
        if next(self.posts) <= serving._ROUNDS + self.otherwise.get("places", 10):
            return self.otherwise.get("early", answer(200))
        return self.otherwise.get("late", answer(429, retry_after=7))

    @contextmanager
    def stream(self, _clip: bytes) -> Iterator[io.BytesIO]:
        yield io.BytesIO(records(self.otherwise.get("last_record", END)))

    def gauge(self, _name: str) -> float:
        return self.otherwise.get("running", 0.0)

    def upload(self, size: int, *, announced: bool) -> Upload:
        return Upload(
            status=self.otherwise.get("upload", 413), seconds=0.1, sent=size // 2 if announced else size
        )

    def terminate(self) -> None:
        self.ended = True

    def exit_code(self, _seconds: float) -> int:
        assert self.ended
        return self.otherwise.get("code", 0)

    def log(self) -> str:
        return self.otherwise.get("log", "INFO ready")


def test_a_good_server_is_measured_whole(capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(json.dumps(measure(ScriptedServer(), b"clip")))  # type: ignore[arg-type]
    assert rows["ready_seconds"] == 0.2
    assert rows["one_clip"] == {
        "median_seconds": 0.5,
        "fastest_seconds": 0.5,
        "slowest_seconds": 0.5,
        "rounds": serving._ROUNDS,
    }
    together = rows["clients_at_once"]
    assert together["statuses"] == {"200": 10, "429": 6}
    assert together["retry_after_seconds"] == [7]
    assert rows["body_of_200_mb"]["with_length"]["bytes_sent"] == 10**8
    assert rows["sigterm"]["frames"] == 2
    assert rows["sigterm"]["exit_code"] == 0
    assert "sigterm: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("otherwise", "message"),
    [
        ({"early": answer(500)}, "one client was answered"),
        ({"late": answer(500)}, "clients at once were answered"),
        ({"places": 8}, "one at work and 8 waiting are served, not 8"),
        ({"late": answer(429)}, "a 429 does not say when to come back"),
        ({"last_record": ERROR}, "a stream has ended with"),
        ({"running": 1.0}, "a client that has left keeps its place"),
        ({"upload": 200}, "a body of 200000000 bytes was answered 200"),
        ({"code": 1}, "the exit code after SIGTERM is 1"),
        ({"log": "Traceback (most recent call last):"}, "has logged a traceback"),
    ],
)
def test_what_must_not_be_ends_the_measurement(
    otherwise: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "_EXIT_SECONDS", 0.01)
    with pytest.raises(RuntimeError, match=message):
        measure(ScriptedServer(**otherwise), b"clip")  # type: ignore[arg-type]


@pytest.fixture
def server() -> Iterator[Callable[..., RunningServer]]:
    """Return a function that starts a server whose models do nothing; skipped where its libraries are missing."""
    for name in ("fastapi", "pydantic", "uvicorn", "prometheus_client"):
        pytest.importorskip(name)
    from ..runtime.serve.running_server import RunningServer, SlowModels

    running: list[RunningServer] = []

    def start(**limits: Any) -> RunningServer:
        new = RunningServer(SlowModels(), AccessRules(), None, **limits)
        new.start()
        running.append(new)
        new.wait_until_ready()
        return new

    yield start
    for each in running:
        each.stop()


def test_the_client_speaks_to_a_server(server: Callable[..., RunningServer]) -> None:
    client, clip = Client(server().port), CLIP.read_bytes()
    assert client.get("/ready")[0] == 200
    assert client.gauge("foresight_requests_running") == 0
    with pytest.raises(RuntimeError, match="/metrics has no foresight_nothing"):
        client.gauge("foresight_nothing")
    posted = client.post(clip)
    assert (posted.status, posted.retry_after) == (200, None)
    assert posted.size > 1000
    with client.stream(clip) as response:
        *frames, end = read_records(response)
    assert (len(frames), end.kind) == (72, END)
    with pytest.raises(RuntimeError, match="a stream was answered with 4"), client.stream(b"no clip"):
        pass


@pytest.mark.parametrize("announced", [True, False])
def test_an_upload_stops_at_the_servers_limit(announced: bool, server: Callable[..., RunningServer]) -> None:
    client = Client(server(clip=replace(UNTRUSTED, max_bytes=2**16)).port)
    upload = client.upload(2**26, announced=announced)
    assert upload.status == 413
    # A body whose length is announced may be refused before a byte of it is sent.
    assert (0 if announced else 1) <= upload.sent < 2**26


def test_a_command_that_does_not_listen_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    real = subprocess.Popen

    def start(command: list[str], **options: Any) -> Any:
        return real([command[0], "-c", "import sys; sys.exit('no such engine')"], **options)

    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(RuntimeError, match="the server does not listen: no such engine"):
        Server([])
