"""What `foresight-serve` takes from the start to `/ready`, for one client, for sixteen, and to be rid of bad ones.

`python -m bench.serving` starts the server with the nano stack on loopback and writes results/serving_cpu.json. A
request that hangs, is lost or is answered with anything that it should not be ends it with an error.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.environment import describe_command, describe_environment
from bench.serving_client import Server
from foresight.runtime.frame_records import END, read_records
from foresight.runtime.waiting import wait_briefly

__all__ = ["RESULTS", "measure"]

RESULTS = Path(__file__).parent / "results" / "serving_cpu.json"
_CLIP = Path(__file__).parents[1] / "examples/clip.mp4"
_ROUNDS = 5
_CLIENTS, _QUEUE = 16, 8
_UPLOAD = 200 * 10**6
_EXIT_SECONDS = 60.0

Row = dict[str, Any]


def measure(server: Server, clip: bytes) -> Row:
    """All figures of one server, which has ended afterwards; seconds throughout.

    Raises RuntimeError, or what the client raises, for an answer that must not be.
    """
    rows: Row = {
        "listening_seconds": server.listening_seconds,
        "ready_seconds": server.ready_seconds(),
    }
    steps: dict[str, Callable[[Server, bytes], Row]] = {
        "one_clip": _one_clip,
        "first_frame": _first_frame,
        "clients_at_once": _clients_at_once,
        "client_that_leaves": _client_that_leaves,
        "body_of_200_mb": _endless_body,
        "sigterm": _sigterm,
    }
    for name, step in steps.items():
        rows[name] = step(server, clip)
        print(f"{name}: {rows[name]}", flush=True)
    if "Traceback" in server.log():
        raise RuntimeError(f"the server has logged a traceback:\n{server.log()}")
    return rows


def _one_clip(server: Server, clip: bytes) -> Row:
    answers = [server.post(clip) for _ in range(_ROUNDS)]
    _expect({answer.status for answer in answers} == {200}, f"one client was answered {answers}")
    return _summary([answer.seconds for answer in answers])


def _first_frame(server: Server, clip: bytes) -> Row:
    first, whole = [], []
    for _ in range(_ROUNDS):
        begun = time.perf_counter()
        with server.stream(clip) as response:
            records = read_records(response)
            next(records)
            first.append(time.perf_counter() - begun)
            *_, end = records
            whole.append(time.perf_counter() - begun)
        _expect(end.kind == END, f"a stream has ended with {end}")
    return _summary(first) | {"whole_stream": _summary(whole)}


def _clients_at_once(server: Server, clip: bytes) -> Row:
    start = threading.Barrier(_CLIENTS)

    def post(_: int) -> Any:
        start.wait()
        return server.post(clip)

    with ThreadPoolExecutor(_CLIENTS) as clients:
        answers = list(clients.map(post, range(_CLIENTS)))
    statuses = Counter(answer.status for answer in answers)
    served = [answer for answer in answers if answer.status == 200]
    refused = [answer for answer in answers if answer.status == 429]
    _expect(set(statuses) <= {200, 429}, f"clients at once were answered {statuses}")
    _expect(len(served) > _QUEUE, f"one at work and {_QUEUE} waiting are served, not {len(served)}")
    _expect(all(answer.retry_after for answer in refused), "a 429 does not say when to come back")
    return {
        "clients": _CLIENTS,
        "queue": _QUEUE,
        "statuses": dict(statuses),
        "last_200_seconds": max(answer.seconds for answer in served),
        "last_429_seconds": max((answer.seconds for answer in refused), default=None),
        "retry_after_seconds": sorted({answer.retry_after for answer in refused}),
    }


def _client_that_leaves(server: Server, clip: bytes) -> Row:
    seconds = []
    for _ in range(_ROUNDS):
        with server.stream(clip) as response:
            next(read_records(response))
        begun = time.perf_counter()
        while server.gauge("foresight_requests_running"):
            _expect(time.perf_counter() - begun < _EXIT_SECONDS, "a client that has left keeps its place")
            time.sleep(0.005)
        seconds.append(time.perf_counter() - begun)
    return _summary(seconds)


def _endless_body(server: Server, _clip: bytes) -> Row:
    rows = {}
    for name, announced in (("with_length", True), ("in_pieces", False)):
        upload = server.upload(_UPLOAD, announced=announced)
        _expect(upload.status == 413, f"a body of {_UPLOAD} bytes was answered {upload.status}")
        rows[name] = {"seconds": upload.seconds, "bytes_sent": upload.sent}
    return rows


def _sigterm(server: Server, clip: bytes) -> Row:
    with server.stream(clip) as response:
        records = read_records(response)
        next(records)
        begun = time.perf_counter()
        server.terminate()
        *frames, end = records
        finished = time.perf_counter() - begun
    _expect(end.kind == END, f"the request at work has ended with {end}")
    code = server.exit_code(_EXIT_SECONDS)
    _expect(code == 0, f"the exit code after SIGTERM is {code}")
    return {
        "frames": 1 + len(frames),
        "finished_seconds": finished,
        "exit_seconds": time.perf_counter() - begun,
        "exit_code": code,
    }


def _summary(seconds: list[float]) -> Row:
    return {
        "median_seconds": statistics.median(seconds),
        "fastest_seconds": min(seconds),
        "slowest_seconds": max(seconds),
        "rounds": len(seconds),
    }


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise RuntimeError(otherwise)


def main() -> None:
    """Measure one server, print its figures and write the results."""
    parser = argparse.ArgumentParser(prog="python -m bench.serving", description=__doc__)
    parser.add_argument("--adapter", type=Path, help="an engine or a checkpoint; the stack's own by default")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    load_before = os.getloadavg()
    adapter = ["--adapter", str(options.adapter)] if options.adapter else []
    # The server inherits what it would choose itself, so that the file names it.
    wait_briefly()
    arguments = ["--device", "cpu", "--queue", str(_QUEUE), *adapter]
    with Server(arguments) as server:
        rows = measure(server, _CLIP.read_bytes())
    content = {
        "environment": describe_environment() | {"load_average_before": load_before},
        "command": describe_command(),
        "server": shlex.join(["foresight-serve", "--port", "0", *arguments]),
        "clip": "examples/clip.mp4",
        "rows": rows,
    }
    options.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
