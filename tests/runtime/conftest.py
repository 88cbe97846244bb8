"""Clips that the tests make for themselves, and a stack that does nothing, so that frames can be followed."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import uvicorn
from torch import Tensor, nn

from foresight.media import ClipWriter, FrameBatch
from foresight.models.presets import STACKS
from foresight.runtime.access import AccessRules
from foresight.runtime.chunks import Chunk, split_into_chunks
from foresight.runtime.config import PipelineConfig
from foresight.runtime.decoding import ClipDecoder
from foresight.runtime.engine_worker import EngineWorker, WorkerState
from foresight.runtime.frame_records import FRAMES_TYPE
from foresight.runtime.http_protocol import DeadlineProtocol
from foresight.runtime.metrics import Metrics
from foresight.runtime.pipeline import ReconstructedChunk
from foresight.runtime.request_limits import SizeLimits
from foresight.runtime.server import DrainingServer
from foresight.runtime.service import create_app
from foresight.runtime.service_state import RequestCeilings, ServiceState
from foresight.runtime.timing import StageClock

MakeClip = Callable[..., Path]


@pytest.fixture(autouse=True)
def _offline_and_single_threaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def moving_frames(count: int, height: int, width: int) -> np.ndarray:
    """A colour ramp that moves by two pixels a frame: [count, height, width, 3] uint8."""
    rows, columns = np.mgrid[:height, :width]
    shifts = 2 * np.arange(count)[:, None, None]
    red, green = (columns + shifts) * 255 // (width + 2 * count), rows * 255 // height + 0 * shifts
    return np.stack([red, green, 255 - red], axis=-1).astype(np.uint8)


@pytest.fixture
def make_clip(tmp_path: Path) -> MakeClip:
    """Return a function that writes a clip of moving colours: (name, frames, height, width, fps)."""

    def make(
        name: str = "clip.mp4", frames: int = 10, height: int = 48, width: int = 64, fps: int = 24
    ) -> Path:
        path = tmp_path / name
        with ClipWriter(path, width=width, height=height, fps=Fraction(fps)) as writer:
            times = np.arange(frames) / fps
            pixels = moving_frames(frames, height, width)
            writer.write(FrameBatch(frames=pixels, timestamps=times, fps=Fraction(fps)))
        return path

    return make


class Identity(nn.Module):
    """Stands for an encoder, an adapter and a decoder at once: everything is the video itself."""

    token_grid = (1, 1, 1)
    config = SimpleNamespace(mode="latent", latent_channels=3)

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[int] = []

    def preprocess(self, video: Tensor) -> Tensor:
        return video

    def forward(self, states: Tensor, *_: Any, **__: Any) -> Tensor:
        return states

    def decode(self, latents: Tensor, seed: int = 0, first_index: int = 0) -> Tensor:  # noqa: ARG002
        self.seen.append(first_index)
        return latents


@pytest.fixture
def identity() -> Identity:
    return Identity()


@pytest.fixture
def identity_stack(identity: Identity) -> Any:
    """A stack of nano's configuration whose models return what they are given."""
    return SimpleNamespace(config=STACKS["nano"], vlm=identity, dino=identity, decoder=identity)


class SlowModels:
    """Stands for the server's models: every chunk comes back as it was sent, after a while."""

    config = STACKS["nano"]
    modes: tuple[Any, ...] = ("conditioning", "latent")

    def __init__(self) -> None:
        self.seconds = 0.0
        self.error: Exception | None = None
        self.chunks = 0

    def pipeline(self, config: PipelineConfig) -> Any:  # noqa: ARG002
        return SimpleNamespace(clock=StageClock(), stream=self._stream, reconstruct=self._reconstruct)

    def _stream(self, batches: Iterable[FrameBatch]) -> Iterator[ReconstructedChunk]:
        for chunk in split_into_chunks(batches, self.config.num_frames):
            yield self._reconstruct(chunk)

    def _reconstruct(self, chunk: Chunk) -> ReconstructedChunk:
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        self.chunks += 1
        return ReconstructedChunk(index=chunk.index, batch=chunk.batch, source=chunk.batch)

    def describe(self) -> dict[str, Any]:
        return {"backend": "none"}

    def close(self) -> None:
        """There is nothing to let go of."""


class RunningServer:
    """A server on a free port of 127.0.0.1, in a thread; a client that speaks HTTP to it."""

    def __init__(self, models: Any, rules: AccessRules, sizes: SizeLimits | None, **limits: Any) -> None:
        metrics, ceilings = Metrics(), RequestCeilings(**limits)
        self.load = threading.Event()
        self.load.set()
        worker = EngineWorker(lambda: self._load(models), queue_size=ceilings.queue, metrics=metrics)
        self.state = ServiceState(
            worker=worker, decoder=ClipDecoder(ceilings.clip), metrics=metrics, limits=ceilings
        )
        self.app = create_app(self.state, rules, sizes=sizes)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        config = uvicorn.Config(
            self.app,
            http=DeadlineProtocol,
            ws="websockets-sansio",
            log_config=None,
            timeout_graceful_shutdown=5,
        )
        self.server = DrainingServer(config, self.state, drain_seconds=20)
        self._thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self._listener]})

    def _load(self, models: Any) -> Any:
        assert self.load.wait(30)
        return models

    def start(self) -> None:
        self._thread.start()
        self.wait_for(lambda: self.server.started)

    def stop(self) -> None:
        self.load.set()
        self.server.should_exit = True
        self._thread.join(30)
        self._listener.close()
        assert not self._thread.is_alive()

    @staticmethod
    def wait_for(condition: Callable[[], object], seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it did not come to pass"
            time.sleep(0.01)

    def wait_until_ready(self) -> None:
        self.wait_for(lambda: self.state.worker.state is WorkerState.READY)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, bytes]:
        """Status, headers and body of an answer."""
        with closing(self.connect()) as connection:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.headers, response.read()

    def post(self, clip: bytes | None, *, accept: str = "*/*", **fields: object) -> tuple[int, Any, bytes]:
        """Post a clip and the other fields of the form."""
        body, kind = multipart(clip, **fields)
        return self.request("POST", "/v1/videos/sync", body, {"Content-Type": kind, "Accept": accept})

    @contextmanager
    def stream(self, clip: bytes, **fields: object) -> Iterator[http.client.HTTPResponse]:
        """Post a clip for streamed frames; the answer is read inside the block, and left at its end."""
        body, kind = multipart(clip, **fields)
        with closing(self.connect()) as connection:
            headers = {"Content-Type": kind, "Accept": FRAMES_TYPE}
            connection.request("POST", "/v1/videos/sync", body, headers)
            with closing(connection.getresponse()) as response:
                assert response.status == 200
                yield response


def multipart(clip: bytes | None, **fields: object) -> tuple[bytes, str]:
    """A form and its content type."""
    parts = [
        f'--limit\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    if clip is not None:
        head = b'--limit\r\nContent-Disposition: form-data; name="clip"; filename="a.mp4"\r\n\r\n'
        parts.append(head + clip + b"\r\n")
    return b"".join([*parts, b"--limit--\r\n"]), "multipart/form-data; boundary=limit"


@pytest.fixture
def slow_models() -> SlowModels:
    return SlowModels()


@pytest.fixture
def serve(slow_models: SlowModels) -> Iterator[Callable[..., RunningServer]]:
    """Return a function that starts a server; `ready` off leaves it loading until `load` is set."""
    running: list[RunningServer] = []

    def start(
        models: Any = None,
        *,
        rules: AccessRules | None = None,
        sizes: SizeLimits | None = None,
        ready: bool = True,
        **limits: Any,
    ) -> RunningServer:
        server = RunningServer(models or slow_models, rules or AccessRules(), sizes, **limits)
        if not ready:
            server.load.clear()
        server.start()
        running.append(server)
        if ready:
            server.wait_until_ready()
        return server

    yield start
    for server in running:
        server.stop()
