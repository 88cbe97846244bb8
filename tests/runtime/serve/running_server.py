"""A server in a thread of the tests, models that do nothing but take their time, and a client."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from types import SimpleNamespace
from typing import Any

import uvicorn

from foresight.media import FrameBatch
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


class SlowModels:
    """Stands for the server's models: every chunk comes back as it was sent, after a while."""

    config = STACKS["nano"]
    modes: tuple[Any, ...] = ("conditioning", "latent")

    def __init__(self) -> None:
        self.seconds = 0.0
        self.error: Exception | None = None
        self.chunks = 0
        self.free = threading.Event()
        self.free.set()

    def pipeline(self, config: PipelineConfig) -> Any:  # noqa: ARG002
        return SimpleNamespace(clock=StageClock(), stream=self._stream, reconstruct=self._reconstruct)

    def _stream(self, batches: Iterable[FrameBatch]) -> Iterator[ReconstructedChunk]:
        for chunk in split_into_chunks(batches, self.config.num_frames):
            yield self._reconstruct(chunk)

    def _reconstruct(self, chunk: Chunk) -> ReconstructedChunk:
        time.sleep(self.seconds)
        assert self.free.wait(60)
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

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

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
