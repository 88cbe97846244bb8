"""A server from its start to its end: readiness, what it says of itself, and the signal that drains it."""

from __future__ import annotations

import http.client
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

import pytest
from prometheus_client.parser import text_string_to_metric_families
from safetensors.torch import save_file

from foresight.adapters import (
    WEIGHTS,
    EngineBucket,
    EngineTarget,
    MemberSource,
    build_adapter,
    write_engine,
)
from foresight.models.fingerprint import local_fingerprint
from foresight.runtime import serve as command
from foresight.runtime.backend import BACKENDS
from foresight.runtime.config import BackendChoice
from foresight.runtime.frame_records import END, FRAMES_TYPE, read_records
from foresight.runtime.server_log import configure_log

from ..small_adapter import small_config

MakeClip = Callable[..., Path]
Serve = Callable[..., Any]


def test_it_is_ready_once_it_is_warm(serve: Serve, make_clip: MakeClip) -> None:
    server = serve(ready=False)
    assert server.request("GET", "/health")[0] == 200
    for path in ("/ready", "/v1/models"):
        status, headers, body = server.request("GET", path)
        assert (status, headers["Retry-After"]) == (503, "5")
        assert json.loads(body)["error"]["message"] == "the engine is loading"
    assert server.post(make_clip().read_bytes())[0] == 503
    server.load.set()
    server.wait_until_ready()
    assert server.request("GET", "/ready")[0] == 200


def test_it_says_what_it_serves(serve: Serve) -> None:
    server = serve(queue=3)
    (model,) = json.loads(server.request("GET", "/v1/models")[2])["data"]
    assert model["id"] == "foresight-nano"
    assert model["modes"] == ["conditioning", "latent"]
    assert model["stages"] == ["vlm", "dino", "adapter", "denoise", "vae"]
    assert (model["limits"]["queue"], model["limits"]["max_frames"]) == (3, 257)
    status, headers, page = server.request("GET", "/docs")
    assert status == 200
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert b"/v1/videos/sync" in page
    assert b"<script" not in page
    openapi = json.loads(server.request("GET", "/openapi.json")[2])
    post = openapi["paths"]["/v1/videos/sync"]["post"]
    fields = post["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert set(fields) == {"clip", "mode", "steps", "seed", "size"}
    assert {"200", "401", "413", "422", "429", "503"} <= set(post["responses"])


def test_every_metric_has_its_name(serve: Serve, make_clip: MakeClip) -> None:
    server = serve()
    assert server.post(make_clip(frames=17).read_bytes())[0] == 200
    text = server.request("GET", "/metrics")[2].decode()
    families = {
        family.name: family
        for family in text_string_to_metric_families(text)
        if not family.name.endswith("_created")
    }
    assert set(families) == {
        "foresight_requests",
        "foresight_rejected",
        "foresight_requests_running",
        "foresight_requests_waiting",
        "foresight_time_to_first_frame_seconds",
        "foresight_inter_frame_seconds",
        "foresight_stage_seconds",
        "foresight_video_realtime_factor",
    }
    counts = {
        sample.name: sample.value
        for family in families.values()
        for sample in family.samples
        if sample.name.endswith("_count")
    }
    assert counts["foresight_time_to_first_frame_seconds_count"] == 1
    assert counts["foresight_inter_frame_seconds_count"] == 1
    assert counts["foresight_video_realtime_factor_count"] == 1


def test_a_request_has_an_id_in_its_answer_and_in_the_log(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve()
    with caplog.at_level(logging.INFO, "foresight.runtime.request_log"):
        given = server.request("GET", "/v1/models", headers={"X-Request-Id": "mine-1"})[1]
        made = server.request("GET", "/v1/models", headers={"X-Request-Id": 'x" injected'})[1]
        body = server.request("GET", "/nowhere", headers={"X-Request-Id": "mine-2"})[2]
        server.wait_for(lambda: len(caplog.messages) == 3)
    assert given["X-Request-Id"] == "mine-1"
    assert len(made["X-Request-Id"]) == 32
    assert json.loads(body)["error"]["request_id"] == "mine-2"
    assert caplog.messages[0].startswith("mine-1 GET '/v1/models' 200 in ")
    assert caplog.messages[2].startswith("mine-2 GET '/nowhere' 404 in ")


def test_the_log_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    configure_log(as_json=True)
    logging.getLogger("foresight.runtime.server").info("two\nlines")
    (line,) = capsys.readouterr().err.splitlines()
    entry = json.loads(line)
    assert (entry["level"], entry["message"]) == ("info", "two\nlines")


def test_a_drain_takes_no_new_request_and_finishes_the_old(
    serve: Serve, slow_models: Any, make_clip: MakeClip
) -> None:
    slow_models.seconds = 0.1
    server, clip = serve(), make_clip(frames=41).read_bytes()
    with server.stream(clip) as response:
        records = read_records(response)
        next(records)
        server.server.handle_exit(signal.SIGTERM, None)
        assert server.request("GET", "/ready")[0] == 503
        assert server.request("GET", "/health")[0] == 200
        assert server.post(clip)[0] == 503
        *frames, end = records
    assert (len(frames), end.kind) == (40, END)
    server.wait_for(lambda: not server.running)


@pytest.mark.slow
def test_sigterm_during_a_request_finishes_it_and_exits_with_0(make_clip: MakeClip, tmp_path: Path) -> None:
    body = make_clip(frames=41).read_bytes()
    arguments = ("--random-weights", "--device", "cpu", "--port", "0", "--api-key", "a-key-for-tests")
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(
            [sys.executable, "-m", "foresight.runtime.serve", *arguments],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        ) as process,
    ):
        killer = threading.Timer(150, process.kill)
        killer.start()
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline().rpartition(":")[2])
            wait_until_ready(process, port)
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
                post_for_frames(connection, body)
                with closing(connection.getresponse()) as response:
                    records = read_records(response)
                    next(records)
                    process.send_signal(signal.SIGTERM)
                    *frames, end = records
            assert (len(frames), end.kind) == (40, END)
            assert process.wait(30) == 0
        finally:
            killer.cancel()
            process.kill()
    assert "Traceback" not in (tmp_path / "log").read_text()


def post_for_frames(connection: http.client.HTTPConnection, clip: bytes) -> None:
    head = b'--limit\r\nContent-Disposition: form-data; name="clip"; filename="a.mp4"\r\n\r\n'
    headers = {
        "Content-Type": "multipart/form-data; boundary=limit",
        "Accept": FRAMES_TYPE,
        "X-API-Key": "a-key-for-tests",
    }
    connection.request("POST", "/v1/videos/sync", head + clip + b"\r\n--limit--\r\n", headers)


def wait_until_ready(process: subprocess.Popen[str], port: int) -> None:
    while process.poll() is None:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            connection.request("GET", "/ready", headers={"X-API-Key": "a-key-for-tests"})
            with closing(connection.getresponse()) as response:
                if response.status == 200:
                    return
        time.sleep(0.3)
    raise AssertionError("the server has ended")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--adapter", "there/is/no.engine"), "there/is/no.engine: there is no such engine"),
        (("--backend", "aoti"), "backend 'aoti': runs an engine; give one with --adapter"),
        (("--backend", "onnx", "--adapter", "."), "backend 'onnx': runs an engine, . is a checkpoint folder"),
        (("--stack", "mega"), "stack 'mega': no such stack"),
        (("--device", "tpu"), "device 'tpu'"),
        (("--port", "99999"), "port 99999"),
        (("--host", "0.0.0.0"), "host 0.0.0.0: others can reach it"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"foresight-serve: error: {message}")
    assert printed.count("\n") == 1


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """A small engine for the shipped stack."""
    config = small_config(num_layers=1)
    save_file(dict(build_adapter(config).state_dict()), tmp_path / "w")
    fingerprint = local_fingerprint("nano")
    assert fingerprint is not None
    write_engine(
        tmp_path / "adapter.engine",
        [
            MemberSource(
                name=WEIGHTS, path=tmp_path / "w", dtype="float32", target=EngineTarget(kind="weights")
            )
        ],
        adapter=config,
        stack_fingerprint=fingerprint,
        buckets=[EngineBucket(batch=1, vlm_tokens=24, dino_tokens=16)],
    )
    return tmp_path / "adapter.engine"


def damage(engine: Path) -> None:
    content = bytearray(engine.read_bytes())
    content[len(content) // 2] ^= 1
    engine.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (
            lambda engine: engine.write_bytes(b"no engine"),
            (),
            "is no engine with a manifest; as a bare TensorRT plan",
        ),
        (damage, (), f"member {WEIGHTS!r} is damaged or was changed"),
        (lambda _: None, ("--random-weights",), "was made for the features of stack 'nano-"),
        (lambda _: None, ("--engine-sha256", "0" * 64), "not the expected"),
    ],
)
def test_a_bad_engine_is_refused_before_the_server_listens(
    change: Callable[[Path], object],
    arguments: tuple[str, ...],
    message: str,
    engine: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("foresight.runtime.serving._listening_socket", None)
    change(engine)
    assert command.main(["--adapter", str(engine), "--device", "cpu", "--port", "0", *arguments]) == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"foresight-serve: error: {engine}: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_with_a_good_engine_a_folder_or_nothing_the_server_comes_as_far_as_its_port(
    engine: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for adapter in (("--adapter", str(engine)), ("--adapter", str(tmp_path)), ()):
            assert command.main([*adapter, "--port", address.rpartition(":")[2]]) == 2
            assert capfd.readouterr().err.startswith(
                f"foresight-serve: error: {address}: cannot be listened on"
            )


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "_NEEDED", ("fastapi", "no_such_module"))
    assert command.main([]) == 2
    expected = (
        "foresight-serve: error: needs no_such_module; install them with: pip install 'foresight[serve]'\n"
    )
    assert capsys.readouterr().err == expected


def test_the_other_command_and_the_options_import_nothing_of_the_server() -> None:
    program = (
        "import sys; import foresight.runtime.reconstruct, foresight.runtime.pipeline, foresight.runtime.serve; "
        "names = {name.partition('.')[0] for name in sys.modules}; "
        "print(sorted(names & {'fastapi', 'starlette', 'uvicorn', 'prometheus_client', 'websockets', 'multipart'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_backend_can_be_chosen() -> None:
    assert set(get_args(BackendChoice)) == set(BACKENDS)
