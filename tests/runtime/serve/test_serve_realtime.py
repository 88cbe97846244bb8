"""A live stream: frames in, frames out, and what becomes of those that do not keep to the rules."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

Serve = Callable[..., Any]
RAW = {"type": "start", "format": "raw", "width": 32, "height": 16, "fps": 10}


def frames_of(count: int, height: int = 16, width: int = 32) -> Iterator[np.ndarray]:
    for index in range(count):
        yield np.full((height, width, 3), 10 * index, np.uint8)


@contextmanager
def open_stream(server: Any, **start: object) -> Iterator[ClientConnection]:
    with connect(f"ws://127.0.0.1:{server.port}/v1/realtime/video", close_timeout=5) as stream:
        stream.send(json.dumps(start))
        yield stream


def refusal_of_stream(server: Any) -> Any:
    with pytest.raises(InvalidStatus) as refused, open_stream(server):
        pass
    return refused.value.response


def receive(stream: ClientConnection) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """Messages and frames until the server closes."""
    messages, frames = [], []
    try:
        while True:
            message = stream.recv(20)
            if isinstance(message, str):
                messages.append(json.loads(message))
            else:
                with Image.open(BytesIO(message)) as image:
                    frames.append(np.asarray(image))
    except ConnectionClosed:
        return messages, frames


def encoded(frame: np.ndarray, kind: str) -> bytes:
    if kind == "raw":
        return frame.tobytes()
    buffer = BytesIO()
    Image.fromarray(frame).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["raw", "png", "jpeg"])
def test_every_frame_comes_back_in_its_chunk(kind: str, serve: Serve) -> None:
    with open_stream(serve(), **RAW | {"format": kind}) as stream:
        for frame in frames_of(12):
            stream.send(encoded(frame, kind))
        stream.send('{"type": "end"}')
        messages, frames = receive(stream)
        assert stream.close_code == 1000
    assert [message["type"] for message in messages] == ["ready", "chunk", "chunk", "done"]
    chunks = messages[1:3]
    assert [(chunk["index"], chunk["first_frame"], chunk["frames"]) for chunk in chunks] == [
        (0, 0, 9),
        (1, 9, 3),
    ]
    assert set(chunks[0]["stages_ms"]) == {"vlm", "dino", "adapter", "denoise", "vae"}
    assert (messages[-1]["frames"], messages[-1]["chunks"]) == (12, 2)
    assert len(frames) == 12
    for sent, got in zip(frames_of(12), frames, strict=True):
        assert np.abs(sent.astype(int) - got).max() <= 3


def test_a_chunk_is_answered_while_the_stream_goes_on(serve: Serve) -> None:
    with open_stream(serve(), **RAW) as stream:
        assert "ready" in str(stream.recv(10))
        for frame in frames_of(9):
            stream.send(frame.tobytes())
        assert json.loads(stream.recv(10))["type"] == "chunk"
        for _ in range(9):
            assert isinstance(stream.recv(10), bytes)


def test_a_live_chunk_goes_before_the_next_chunk_of_a_clip(
    serve: Serve, slow_models: Any, make_clip: Callable[..., Any]
) -> None:
    slow_models.seconds = 0.2
    server = serve()
    with (
        server.stream(make_clip(frames=81).read_bytes()) as response,
        open_stream(server, **RAW) as stream,
    ):
        response.read(1)
        for frame in frames_of(9):
            stream.send(frame.tobytes())
        assert "ready" in str(stream.recv(10))
        assert json.loads(stream.recv(10))["type"] == "chunk"
        assert slow_models.chunks < 8


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ({"type": "begin"}, "the first message must be"),
        (RAW | {"fps": 0}, "fps 0: must be a number from 0.1 to 240"),
        (RAW | {"format": "gif"}, "format 'gif': must be jpeg, png or raw"),
        (RAW | {"width": "32"}, "raw frames need width and height"),
        (RAW | {"width": 100_000, "height": 100_000}, "frames of 100000x100000: exceed the limit"),
        (RAW | {"width": 20_000, "height": 1}, "frames of 20000x1: a side has at most 16384 pixels"),
        (RAW | {"steps": 99}, "steps 99: at most 16"),
        (RAW | {"mode": "magic"}, "mode 'magic'"),
        (RAW | {"codec": "h264"}, "start: unknown key 'codec'"),
    ],
)
def test_a_wrong_start_is_named(start: dict[str, Any], message: str, serve: Serve) -> None:
    with open_stream(serve(), **start) as stream:
        (error,), _ = receive(stream)
        assert (error["type"], stream.close_code) == ("error", 1008)
        assert error["message"].startswith(message)


@pytest.mark.parametrize(
    ("start", "content", "message"),
    [
        (RAW, b"abc", "raw frame of 3 bytes: 32x16 RGB has 1536"),
        (RAW, "[]", "control messages are JSON objects"),
        (RAW, '{"type": "stop"}', "control 'stop': after the start only end"),
        (RAW | {"format": "jpeg"}, b"GIF89a", "frame: is not a JPEG or PNG picture"),
        (RAW | {"format": "png"}, "bomb", "frame of 5000x5000: exceeds the limit of 2088960 pixels"),
    ],
)
def test_a_wrong_message_ends_the_stream(
    start: dict[str, Any], content: str | bytes, message: str, serve: Serve
) -> None:
    if content == "bomb":
        content = encoded(np.zeros((5000, 5000, 3), np.uint8), "png")
    with open_stream(serve(), **start) as stream:
        stream.send(content)
        messages, _ = receive(stream)
        assert stream.close_code == 1008
    assert messages[-1]["message"].startswith(message)


def test_frames_of_another_size_end_the_stream(serve: Serve) -> None:
    with open_stream(serve(), type="start", format="png") as stream:
        for height in (16, 18):
            stream.send(encoded(np.zeros((height, 32, 3), np.uint8), "png"))
        messages, _ = receive(stream)
    assert "frames change from 32x16 to 32x18" in messages[-1]["message"]


def test_a_fault_of_the_servers_own_is_logged_and_not_told(
    serve: Serve, slow_models: Any, caplog: pytest.LogCaptureFixture
) -> None:
    slow_models.error = ValueError("secret of the implementation")
    with open_stream(serve(), **RAW) as stream:
        for frame in frames_of(9):
            stream.send(frame.tobytes())
        messages, _ = receive(stream)
        assert stream.close_code == 1011
    error = messages[-1]
    assert (error["code"], error["message"]) == ("internal", "the reconstruction failed")
    assert error["request_id"] == stream.response.headers["X-Request-Id"]
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.getMessage() == f"request {error['request_id']} failed"
    assert record.exc_info is not None
    assert record.exc_info[1] is slow_models.error


def test_a_device_fault_ends_the_stream_and_readiness(serve: Serve, slow_models: Any) -> None:
    slow_models.error = RuntimeError("CUDA error: an illegal memory access was encountered")
    server = serve()
    with open_stream(server, **RAW) as stream:
        for frame in frames_of(9):
            stream.send(frame.tobytes())
        messages, _ = receive(stream)
        assert stream.close_code == 1013
    assert messages[-1]["message"] == "the device has failed"
    assert server.request("GET", "/ready")[0] == 503


def test_an_idle_stream_is_closed_and_its_place_is_free_again(serve: Serve) -> None:
    server = serve(sessions=1, idle_seconds=0.5)
    with open_stream(server, **RAW) as stream:
        refused = refusal_of_stream(server)
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) > 0
        messages, _ = receive(stream)
        assert "idle" in messages[-1]["message"]
    server.wait_for(lambda: server.state.sessions == 0)
    with open_stream(server, **RAW) as stream:
        assert "ready" in str(stream.recv(10))


def test_a_client_that_leaves_costs_one_chunk_at_most(serve: Serve, slow_models: Any) -> None:
    slow_models.seconds = 0.3
    server = serve()
    with open_stream(server, **RAW) as stream:
        for frame in frames_of(18):
            stream.send(frame.tobytes())
        server.wait_for(lambda: not server.state.worker.idle or slow_models.chunks)
        stream.socket.shutdown(socket.SHUT_RDWR)
    server.wait_for(lambda: server.state.sessions == 0)
    time.sleep(0.4)
    assert slow_models.chunks <= 2
    assert server.state.idle


def test_a_stream_is_ended_when_the_server_drains(serve: Serve) -> None:
    server = serve()
    with open_stream(server, **RAW) as stream:
        for frame in frames_of(11):
            stream.send(frame.tobytes())
        assert "ready" in str(stream.recv(10))
        assert "chunk" in str(stream.recv(10))
        time.sleep(0.2)
        server.state.draining = True
        messages, frames = receive(stream)
        assert stream.close_code == 1012
    assert messages[-1]["draining"] is True
    assert messages[-1]["frames"] == len(frames) == 11
    assert refusal_of_stream(server).status_code == 503
