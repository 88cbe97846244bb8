"""Too much, too slow, too many: what is cut off, and that everybody else is still served."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fractions import Fraction
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from foresight.media import UNTRUSTED, ClipError, ClipLimits
from foresight.runtime.decode_process import DecodeProcess
from foresight.runtime.decoding import ClipDecoder
from foresight.runtime.frame_records import read_records
from foresight.runtime.http_protocol import DeadlineProtocol
from foresight.runtime.outbox import ClientStalledError, Outbox
from foresight.runtime.request_limits import SizeLimits
from foresight.runtime.timing import peak_memory_mb
from foresight.runtime.watched_stream import WatchedStream

MakeClip = Callable[..., Path]
Serve = Callable[..., Any]
FORM = {"Content-Type": "multipart/form-data; boundary=limit"}
PART = b'--limit\r\nContent-Disposition: form-data; name="clip"; filename="a.mp4"\r\n\r\n'


def test_sixteen_clients_at_once_and_a_queue_of_eight(
    serve: Serve, slow_models: Any, make_clip: MakeClip
) -> None:
    server, clip = serve(queue=8), make_clip(frames=17).read_bytes()
    slow_models.free.clear()
    with ThreadPoolExecutor(16) as clients:
        waiting = [clients.submit(server.post, clip) for _ in range(16)]
        server.wait_for(lambda: sum(each.done() for each in waiting) == 7, 30)
        slow_models.free.set()
        answers = [each.result(30) for each in waiting]
    statuses = [status for status, _, _ in answers]
    assert (statuses.count(200), statuses.count(429)) == (9, 7)
    for status, headers, body in answers:
        if status == 429:
            assert 1 <= int(headers["Retry-After"]) <= 60
            assert json.loads(body)["error"]["code"] == "queue_full"
    metrics = server.request("GET", "/metrics")[2].decode()
    assert f'foresight_requests_total{{status="429"}} {float(statuses.count(429))}' in metrics
    assert f'foresight_rejected_total{{reason="queue_full"}} {float(statuses.count(429))}' in metrics
    assert "foresight_requests_waiting 0.0" in metrics
    assert server.post(clip)[0] == 200


def test_a_client_that_leaves_frees_the_models_within_one_chunk(
    serve: Serve, slow_models: Any, make_clip: MakeClip
) -> None:
    slow_models.seconds = 0.3
    server = serve()
    clip = make_clip(frames=161).read_bytes()
    with server.stream(clip) as response:
        next(read_records(response))
    left_at = slow_models.chunks
    server.wait_for(lambda: server.state.worker.idle, 1.0)
    assert slow_models.chunks <= left_at + 1
    server.wait_for(lambda: b'status="499"} 1.0' in server.request("GET", "/metrics")[2])


def test_a_client_that_leaves_the_queue_gives_up_its_place(
    serve: Serve, slow_models: Any, make_clip: MakeClip
) -> None:
    slow_models.seconds = 0.3
    server, clip = serve(queue=1), make_clip(frames=81).read_bytes()
    with ThreadPoolExecutor(1) as clients, server.stream(clip) as response:
        next(read_records(response))
        slow_models.free.clear()
        with socket.create_connection(("127.0.0.1", server.port)) as other:
            body = PART + clip + b"\r\n--limit--\r\n"
            other.sendall(head_of(server.port, len(body)) + body)
            server.wait_for(lambda: b"requests_waiting 1.0" in server.request("GET", "/metrics")[2])
        server.wait_for(lambda: b"requests_waiting 0.0" in server.request("GET", "/metrics")[2], 1.0)
        # There is but one place, and the first client still has the models.
        third = clients.submit(server.post, clip)
        server.wait_for(lambda: b"requests_waiting 1.0" in server.request("GET", "/metrics")[2])
        slow_models.seconds = 0.0
        slow_models.free.set()
    assert third.result(30)[0] == 200


def test_a_client_that_leaves_before_the_first_byte_is_noticed_too() -> None:
    async def converse() -> None:
        closed = asyncio.Event()

        async def parts() -> AsyncGenerator[bytes]:
            try:
                yield b"first"
                await asyncio.sleep(60)
            finally:
                closed.set()

        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        async def send(_message: Any) -> None:
            await asyncio.sleep(60)

        stream = parts()
        response = WatchedStream(await anext(stream), stream, media_type="video/mp4")
        async with asyncio.timeout(5):
            await response({"type": "http"}, receive, send)
        assert closed.is_set()

    asyncio.run(converse())


def test_a_client_that_does_not_read_is_given_up() -> None:
    async def converse() -> None:
        outbox: Outbox[bytes] = Outbox(max_size=10, stall_seconds=0.2)
        put = partial(asyncio.to_thread, outbox.put, b"frame", 5)
        for _ in range(2):
            await put()
        with pytest.raises(ClientStalledError):
            await put()
        assert await outbox.get() == b"frame"
        await put()
        begun = time.perf_counter()
        with pytest.raises(ClientStalledError):
            await put()
        assert time.perf_counter() - begun < 0.1, "the patience is for the request, not for every part"
        outbox.close()
        with pytest.raises(ClientStalledError):
            await put()

    asyncio.run(converse())


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_of_200_mb_is_cut_off(announced: bool, serve: Serve) -> None:
    server = serve()
    before, sent = peak_memory_mb(), 0
    block = bytes(2**20)

    def body() -> Iterator[bytes]:
        nonlocal sent
        yield PART
        for _ in range(200):
            sent += len(block)
            yield block

    length = {"Content-Length": str(len(PART) + 200 * len(block))} if announced else {}
    begun = time.perf_counter()
    connection = server.connect()
    with suppress(BrokenPipeError, ConnectionResetError):
        connection.request("POST", "/v1/videos/sync", body(), FORM | length, encode_chunked=not announced)
    response = connection.getresponse()
    assert (response.status, response.headers["Connection"]) == (413, "close")
    assert b"exceeds 64" in response.read()
    connection.close()
    assert time.perf_counter() - begun < 10
    assert sent < 110 * len(block)
    assert peak_memory_mb() - before < 60
    assert server.state.uploads == 0


def test_a_body_that_drips_is_given_up(serve: Serve) -> None:
    server = serve(sizes=SizeLimits(max_body_bytes=2**20, body_seconds=0.5))
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(head_of(server.port, 10_000) + PART)
        answer = client.recv(4096)
    assert answer.startswith(b"HTTP/1.1 408 ")
    server.wait_for(lambda: server.state.uploads == 0)


def test_connections_without_a_request_are_closed(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeadlineProtocol, "head_seconds", 0.5)
    server = serve()
    clients = [socket.create_connection(("127.0.0.1", server.port), timeout=5) for _ in range(10)]
    try:
        for client, head in zip(clients, 5 * [b"", b"POST / HTTP/1.1\r\nHost: lo"], strict=True):
            client.sendall(head)
        dripping = clients[1]
        begun = time.monotonic()
        with suppress(ConnectionError):
            while time.monotonic() - begun < 5:
                dripping.sendall(b"c")
                time.sleep(0.1)
        assert time.monotonic() - begun < 2
        for client in clients:
            with suppress(ConnectionError):
                assert client.recv(100) == b""
    finally:
        for client in clients:
            client.close()
    assert server.request("GET", "/health")[0] == 200


def test_more_uploads_than_places_are_told_to_come_back(serve: Serve, make_clip: MakeClip) -> None:
    server = serve(uploads=1)
    with socket.create_connection(("127.0.0.1", server.port)) as slow:
        slow.sendall(head_of(server.port, 10_000) + PART)
        server.wait_for(lambda: server.state.uploads == 1)
        status, headers, _ = server.post(make_clip().read_bytes())
        assert (status, headers["Retry-After"]) == (429, "2")
    server.wait_for(lambda: server.state.uploads == 0)
    assert server.post(make_clip(name="b.mp4").read_bytes())[0] == 200


def large_clip(width: int, height: int) -> bytes:
    buffer = BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(25))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((height * 3 // 2, width), np.uint8), format="yuv420p")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


ATTACKS: dict[str, Callable[[MakeClip], bytes]] = {
    "ffconcat": lambda _: b"ffconcat version 1.0\nfile /etc/passwd\n",
    "sdp": lambda _: b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\nc=IN IP4 127.0.0.1\r\nm=video 5004 RTP/AVP 96\r\n",
    "playlist": lambda _: b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
    "url": lambda _: b"http://127.0.0.1:1/clip.mp4",
    "nothing": lambda _: b"",
    "noise": lambda _: np.random.default_rng(0).bytes(100_000),
    "large": lambda _: large_clip(4096, 4096),
    "long": lambda make: make(name="long.mp4", frames=40, fps=1).read_bytes(),
    "frames": lambda make: make(name="many.mp4", frames=258, fps=60).read_bytes(),
    "headless": lambda make: make(name="cut.mp4").read_bytes()[:500],
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_refused_at_once(attack: str, serve: Serve, make_clip: MakeClip) -> None:
    server, clip = serve(), ATTACKS[attack](make_clip)
    server.wait_for(lambda: server.state.decoder.ready)
    time.sleep(0.5)
    begun = time.perf_counter()
    status, _, body = server.post(clip)
    seconds = time.perf_counter() - begun
    error = json.loads(body)["error"]
    assert (status, error["code"]) == (422, "clip_refused")
    assert error["message"].startswith("clip: ")
    assert "\n" not in error["message"]
    assert "passwd" not in error["message"]
    assert seconds < 1


def test_a_decoder_that_dies_is_an_error_of_its_clip_alone(
    serve: Serve, make_clip: MakeClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, clip = serve(), make_clip().read_bytes()
    feed = DecodeProcess.feed

    def feed_and_kill(process: DecodeProcess, file: Any) -> None:
        process.kill()
        feed(process, file)

    monkeypatch.setattr(DecodeProcess, "feed", feed_and_kill)
    status, _, body = server.post(clip)
    assert status == 422
    assert "its decoder had to be stopped (SIGKILL)" in json.loads(body)["error"]["message"]
    monkeypatch.undo()
    assert server.post(clip)[0] == 200


def test_the_decoding_process_is_limited_and_knows_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORESIGHT_API_KEY", "a-secret-of-the-server")
    process = DecodeProcess("images", {"max_pixels": 100, "cpu_seconds": 7})
    try:
        process.write((3).to_bytes(4, "big") + b"abc")
        assert "error" in process.message()
        place = Path(f"/proc/{process.pid}")
        if place.exists():
            assert b"a-secret" not in (place / "environ").read_bytes()
            assert "NoNewPrivs:\t1" in (place / "status").read_text()
            limits = (place / "limits").read_text()
            for name, value in (("cpu time", "7"), ("file size", "0"), ("address space", str(2**31))):
                assert any(name in line and value in line.split() for line in limits.splitlines())
    finally:
        process.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\xff\xff\xff\xff",
        b"\0\0\0\x02[]",
        b'\0\0\0\x0b{"info": 1}',
        b'\0\0\0\x0a{"info":{}}',
    ],
)
def test_nothing_that_a_decoder_answers_is_believed(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = BytesIO(answer)

    def read(process: DecodeProcess, size: int) -> bytearray:
        content = waiting.read(size)
        if len(content) < size:
            process.kill()
            raise ClipError("clip: its decoder had to be stopped")
        return bytearray(content)

    monkeypatch.setattr(DecodeProcess, "read", read)
    decoder = ClipDecoder(ClipLimits(max_pixels=UNTRUSTED.max_pixels))
    try:
        with pytest.raises(ClipError, match="clip: its decoder"):
            decoder.open(BytesIO(b"clip"))
    finally:
        decoder.close()


def head_of(port: int, length: int) -> bytes:
    return (
        f"POST /v1/videos/sync HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {length}\r\n"
        f"Content-Type: {FORM['Content-Type']}\r\n\r\n"
    ).encode()
