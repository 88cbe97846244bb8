"""A decoding process as its parent holds it: bytes in, messages out, never waited for without an end."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, BinaryIO

from foresight.media import ClipError

__all__ = ["DecodeProcess"]

# A reply takes at most the decoder's own limit of 10 s, on a machine that is busy with other things.
_REPLY_SECONDS = 30.0
_MAX_MESSAGE = 2**16
# No key and nothing else of the server's environment; libraries find their files by these.
_ENVIRONMENT = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "SYSTEMROOT")


class DecodeProcess:
    """`foresight.runtime.decode_child` at work; raises ClipError where it dies, hangs or talks nonsense."""

    def __init__(self, way: str, limits: Mapping[str, Any]) -> None:
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        self._lock = threading.Lock()
        # -P: the folder in which the server was started is no place to import from.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "foresight.runtime.decode_child", way, json.dumps(limits)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def feed(self, file: BinaryIO) -> None:
        """Give it a whole file as its input."""
        try:
            shutil.copyfileobj(file, self._input, 2**20)
            self._input.close()
        except (OSError, ValueError) as error:
            raise self._death() from error

    def write(self, content: bytes) -> None:
        """Append to its input."""
        try:
            self._input.write(content)
            self._input.flush()
        except (OSError, ValueError) as error:
            raise self._death() from error

    def message(self) -> dict[str, Any]:
        """Its next message."""
        length = int.from_bytes(self.read(4), "big")
        try:
            if length > _MAX_MESSAGE:
                raise ValueError(f"message of {length} bytes")
            message = json.loads(self.read(length))
            if not isinstance(message, dict):
                raise ValueError("no object")
        except (ValueError, RecursionError) as error:
            if isinstance(error, ClipError):
                raise
            raise ClipError(
                "clip: its decoder gave an answer that cannot be read; give another clip"
            ) from error
        return message

    def read(self, size: int) -> bytearray:
        """Exactly `size` bytes of its output."""
        content, deadline = bytearray(size), time.monotonic() + _REPLY_SECONDS
        view, done = memoryview(content), 0
        while done < size:
            try:
                count = self._read_some(view[done:], deadline)
            except (OSError, ValueError) as error:
                raise self._death() from error
            if not count:
                raise self._death()
            done += count
        return content

    def _read_some(self, into: memoryview, deadline: float) -> int:
        descriptor = self._output.fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1e3):
            self.kill()
            return 0
        return os.readv(descriptor, [into])

    def kill(self) -> None:
        """Stop it at once; whoever reads from it gets a ClipError."""
        with self._lock:
            if self._process.poll() is None:
                self._process.kill()

    def close(self) -> None:
        """Stop it and let go of its pipes; does nothing the second time."""
        self.kill()
        with self._lock:
            for pipe in (self._input, self._output):
                try:
                    pipe.close()
                except BrokenPipeError:  # what was still to be written has no reader any more
                    continue
            self._process.wait()

    def _death(self) -> ClipError:
        self.kill()
        with self._lock:
            code = self._process.wait()
        reason = f" ({signal.Signals(-code).name})" if code < 0 else ""
        return ClipError(f"clip: its decoder had to be stopped{reason}; give a smaller or another clip")
