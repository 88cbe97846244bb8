"""`foresight-serve` in a process of its own on loopback, and a client that measures what it answers."""

from __future__ import annotations

import http.client
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from tempfile import TemporaryFile
from types import TracebackType
from typing import Self

from foresight.runtime.frame_records import FRAMES_TYPE

__all__ = ["Answer", "Client", "Server", "Upload"]

_HOST, _TIMEOUT = "127.0.0.1", 300.0
_PATH, _BOUNDARY = "/v1/videos/sync", "foresight-bench"
_FORM = f"multipart/form-data; boundary={_BOUNDARY}"
_HEAD = (
    f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="clip"; filename="clip.mp4"\r\n'
    "Content-Type: video/mp4\r\n\r\n"
).encode()
_TAIL = f"\r\n--{_BOUNDARY}--\r\n".encode()
_PART = bytes(2**16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one request came to: `status` is HTTP's, `seconds` are until the whole body was there."""

    status: int
    seconds: float
    size: int
    retry_after: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """How far an endless body came: `status` is the answer's, `sent` the bytes that left this side."""

    status: int
    seconds: float
    sent: int


class Client:
    """Speaks to a server on `port` of this machine."""

    def __init__(self, port: int) -> None:
        self.port = port

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a route without arguments."""
        with closing(self._connect()) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()

    def gauge(self, name: str) -> float:
        """A metric without labels."""
        text = self.get("/metrics")[1].decode()
        found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
        if found is None:
            raise RuntimeError(f"/metrics has no {name}")
        return float(found[1])

    def post(self, clip: bytes) -> Answer:
        """Post a clip for an mp4."""
        begun = time.perf_counter()
        with closing(self._connect()) as connection:
            connection.request("POST", _PATH, _HEAD + clip + _TAIL, {"Content-Type": _FORM})
            response = connection.getresponse()
            size = len(response.read())
            wait = response.headers.get("Retry-After")
        return Answer(
            status=response.status,
            seconds=time.perf_counter() - begun,
            size=size,
            retry_after=int(wait) if wait else None,
        )

    @contextmanager
    def stream(self, clip: bytes) -> Iterator[http.client.HTTPResponse]:
        """Post a clip for streamed frames; the client leaves at the end of the block."""
        with closing(self._connect()) as connection:
            headers = {"Content-Type": _FORM, "Accept": FRAMES_TYPE}
            connection.request("POST", _PATH, _HEAD + clip + _TAIL, headers)
            with closing(connection.getresponse()) as response:
                if response.status != 200:
                    raise RuntimeError(f"a stream was answered with {response.status}: {response.read()!r}")
                yield response

    def upload(self, size: int, *, announced: bool) -> Upload:
        """Send a body of `size` bytes, with its length in the head or in pieces, until there is an answer."""
        body = f"Content-Length: {size}" if announced else "Transfer-Encoding: chunked"
        head = (
            f"POST {_PATH} HTTP/1.1\r\nHost: {_HOST}:{self.port}\r\nContent-Type: {_FORM}\r\n{body}\r\n\r\n"
        )
        part = _PART if announced else b"%x\r\n%b\r\n" % (len(_PART), _PART)
        first = _HEAD if announced else b"%x\r\n%b\r\n" % (len(_HEAD), _HEAD)
        begun, sent = time.perf_counter(), 0
        with socket.create_connection((_HOST, self.port), timeout=_TIMEOUT) as connection:
            connection.sendall(head.encode() + first)
            while sent < size and not select.select([connection], [], [], 0)[0]:
                # A server that has had enough may close its end between two sends.
                with suppress(ConnectionError):
                    sent += connection.send(part) if announced else _send_whole(connection, part)
            with closing(connection.makefile("rb")) as answer:
                line = answer.readline()
        if not line:
            raise RuntimeError(f"a body of {size} bytes was cut off without an answer")
        return Upload(status=int(line.split()[1]), seconds=time.perf_counter() - begun, sent=sent)

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(_HOST, self.port, timeout=_TIMEOUT)


def _send_whole(connection: socket.socket, part: bytes) -> int:
    connection.sendall(part)
    return len(part)


class Server(Client):
    """The command at work; leaving the with-block ends it, whatever it is at.

    Args:
        arguments: of `foresight-serve`, without the port.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        command = [sys.executable, "-P", "-m", "foresight.runtime.serve", "--port", "0", *arguments]
        self._log = TemporaryFile("w+")  # noqa: SIM115 - it lives as long as the process
        self._begun = time.perf_counter()
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._log, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if "listening" not in line:
            said = self.log()
            self.close()
            raise RuntimeError(f"the server does not listen: {said}")
        super().__init__(int(line.rpartition(":")[2]))
        self.listening_seconds = time.perf_counter() - self._begun

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process, whatever it is at."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()

    def log(self) -> str:
        """What the server has logged so far."""
        self._log.seek(0)
        return self._log.read()

    def ready_seconds(self) -> float:
        """Wait for `/ready`; seconds since the command was started."""
        while self.get("/ready")[0] != 200:
            if self._process.poll() is not None:
                raise RuntimeError(f"the server has ended: {self.log()}")
            time.sleep(0.02)
        return time.perf_counter() - self._begun

    def terminate(self) -> None:
        """Ask it to drain and end."""
        self._process.send_signal(signal.SIGTERM)

    def exit_code(self, seconds: float) -> int:
        """Its exit code; raises TimeoutExpired where it does not end in time."""
        return self._process.wait(seconds)
