"""A posted clip: both forms of the answer, what they say, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from foresight.adapters import (
    WEIGHTS,
    EngineBucket,
    EngineTarget,
    MemberSource,
    save_adapter,
    write_engine,
)
from foresight.media import ClipError, ClipReader
from foresight.runtime import job
from foresight.runtime.config import PipelineConfig
from foresight.runtime.engine_models import ServedModels, load_served_models
from foresight.runtime.frame_records import END, ERROR, FRAME, FRAMES_TYPE, encode_jpeg, read_records
from foresight.runtime.loading import LoadedModels, untrained_adapter
from foresight.runtime.reconstruct import main
from foresight.runtime.server_options import ServeOptions

MakeClip = Callable[..., Path]
Serve = Callable[..., Any]


class SharedModels(ServedModels):
    """Models that outlive the servers of one test."""

    def close(self) -> None:
        """The next test goes on with them."""


@pytest.fixture(scope="module")
def nano() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    models = load_served_models(ServeOptions(random_weights=True, device="cpu"))
    torch.set_num_threads(threads)
    return SharedModels(stack=models.stack, translators=models.translators, adapter=models.adapter)


def read_clip(source: Path | bytes) -> np.ndarray:
    with ClipReader(source) as reader:
        return np.concatenate([batch.frames for batch in reader.batches(8)])


@pytest.mark.parametrize("mode", ["conditioning", "latent"])
def test_the_frames_are_those_of_the_command(
    mode: Any,
    nano: Any,
    serve: Serve,
    make_clip: MakeClip,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clip, out = make_clip(frames=12, fps=30), tmp_path / "out.mp4"
    models = LoadedModels(stack=nano.stack, adapter=nano.translators[mode], adapter_name="same")
    monkeypatch.setattr(job, "_load", lambda _options, **_: models)
    arguments = ("--mode", mode, "--steps", 2, "--seed", 7, "--device", "cpu")
    assert main([*map(str, (clip, "-o", out, *arguments))]) == 0
    server, fields = serve(nano), {"mode": mode, "steps": 2, "seed": 7}

    status, headers, body = server.post(clip.read_bytes(), **fields)
    assert (status, headers["Content-Type"]) == (200, "video/mp4")
    np.testing.assert_array_equal(read_clip(body), read_clip(out))

    status, headers, body = server.post(clip.read_bytes(), accept=FRAMES_TYPE, **fields)
    assert (status, headers["Content-Type"]) == (200, FRAMES_TYPE)
    *frames, end = read_records(BytesIO(body))
    pipeline = nano.pipeline(PipelineConfig(mode=mode, steps=2, seed=7))
    with ClipReader(clip) as reader:
        made = np.concatenate([chunk.batch.frames for chunk in pipeline.stream(reader.batches(8))])
    assert [frame.jpeg for frame in frames] == [encode_jpeg(frame) for frame in made]
    assert [frame.index for frame in frames] == list(range(12))
    np.testing.assert_allclose([frame.seconds for frame in frames], np.arange(12) / 30, atol=1e-4)
    assert end.kind == END


def test_an_answer_says_what_every_stage_took(nano: Any, serve: Serve, make_clip: MakeClip) -> None:
    clip = make_clip(frames=17).read_bytes()
    server = serve(nano)
    _, headers, _ = server.post(clip, steps=1)
    spent = {
        name: float(headers[f"X-Foresight-{name}-Ms"])
        for name in ("Vlm", "Dino", "Adapter", "Denoise", "Vae")
    }
    assert min(spent.values()) > 0
    added = spent["Dino"] + spent["Adapter"]
    percent = 100 * added / (sum(spent.values()) - added)
    assert float(headers["X-Foresight-Overhead-Percent"]) == pytest.approx(percent, abs=0.02)
    assert headers["X-Foresight-Overhead-Limit-Percent"] == "25"
    assert (headers["X-Foresight-Chunks"], headers["X-Foresight-Frames"]) == ("2", "17")

    _, headers, body = server.post(clip, accept=FRAMES_TYPE, steps=1)
    assert headers["X-Foresight-Chunks"] == "1"
    *_, end = read_records(BytesIO(body))
    assert end.message is not None
    assert (end.message["chunks"], end.message["frames"]) == (2, 17)
    assert min(end.message["stages_ms"].values()) > 0
    metrics = server.request("GET", "/metrics")[2].decode()
    assert 'foresight_stage_seconds_count{stage="vae"} 4.0' in metrics


def test_the_first_frames_come_before_the_last_are_made(
    serve: Serve, slow_models: Any, make_clip: MakeClip
) -> None:
    slow_models.seconds = 0.1
    server = serve()
    with server.stream(make_clip(frames=41).read_bytes()) as response:
        records = read_records(response)
        first = next(records)
        assert first.kind == FRAME
        assert slow_models.chunks < 5
        with Image.open(BytesIO(first.jpeg)) as image:
            assert image.size == (64, 48)
        assert len(list(records)) == 41


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps 0"),
        ({"steps": 17}, "steps 17: at most 16"),
        ({"steps": "two"}, "steps 'two': must be a whole number"),
        ({"seed": -1}, "seed '-1'"),
        ({"seed": 2**63}, "seed 9223372036854775808"),
        ({"mode": "magic"}, "mode 'magic': this server has conditioning, latent"),
        ({"size": "huge"}, "size 'huge'"),
        ({"frames": 3}, "form field 'frames': unknown"),
    ],
)
def test_a_wrong_field_is_named(
    fields: dict[str, object], message: str, serve: Serve, make_clip: MakeClip
) -> None:
    status, _, body = serve().post(make_clip().read_bytes(), **fields)
    assert status == 422
    assert json.loads(body)["error"]["message"].startswith(message)


def test_a_request_that_is_no_form_or_has_no_clip(serve: Serve) -> None:
    server = serve()
    assert server.request("POST", "/v1/videos/sync", b"{}")[0] == 415
    assert server.request("POST", "/v1/videos/sync", b"x", {"Content-Type": "multipart/form-data"})[0] == 400
    status, _, body = server.post(None, steps=1)
    assert (status, json.loads(body)["error"]["code"]) == (422, "invalid_request")
    assert server.post(b"", accept="text/html")[0] == 406
    assert server.request("GET", "/v1/videos/sync")[0] == 405


@pytest.mark.parametrize("accept", ["video/mp4", FRAMES_TYPE])
@pytest.mark.parametrize("kind", [RuntimeError, ValueError])
def test_a_failure_before_the_first_frame_is_a_clean_error(
    kind: type[Exception],
    accept: str,
    serve: Serve,
    slow_models: Any,
    make_clip: MakeClip,
    caplog: pytest.LogCaptureFixture,
) -> None:
    slow_models.error = kind("secret of the implementation")
    server = serve()
    status, headers, body = server.post(make_clip().read_bytes(), accept=accept)
    assert (status, headers["Content-Type"]) == (500, "application/json")
    assert json.loads(body)["error"] == {
        "code": "internal",
        "message": "the reconstruction failed",
        "request_id": headers["X-Request-Id"],
    }
    assert logged_failure(caplog) == (headers["X-Request-Id"], slow_models.error)
    slow_models.error = None
    assert server.post(make_clip(name="b.mp4").read_bytes(), accept=accept)[0] == 200


def logged_failure(caplog: pytest.LogCaptureFixture) -> tuple[str, BaseException | None]:
    """The request's id and the error of the one failure in the log."""
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.exc_info is not None
    return record.getMessage().removeprefix("request ").removesuffix(" failed"), record.exc_info[1]


def test_a_failure_after_it_is_the_last_record(
    serve: Serve, slow_models: Any, make_clip: MakeClip, caplog: pytest.LogCaptureFixture
) -> None:
    slow_models.seconds = 0.2
    with serve().stream(make_clip(frames=41).read_bytes()) as response:
        records = read_records(response)
        next(records)
        slow_models.error = ValueError("secret of the implementation")
        *_, last = records
        request_id = response.headers["X-Request-Id"]
    assert last.kind == ERROR
    assert last.message == {
        "code": "internal",
        "message": "the reconstruction failed",
        "request_id": request_id,
    }
    assert logged_failure(caplog) == (request_id, slow_models.error)


def test_a_full_disk_of_the_server_is_not_the_clips_fault(
    serve: Serve, make_clip: MakeClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise ClipError("/tmp/out.mp4: cannot be written (No space left on device)")

    clip = make_clip().read_bytes()
    monkeypatch.setattr("foresight.runtime.sinks.ClipWriter.close", full)
    status, _, body = serve().post(clip)
    assert (status, json.loads(body)["error"]["message"]) == (500, "the reconstruction failed")


def test_a_device_fault_ends_readiness(serve: Serve, slow_models: Any, make_clip: MakeClip) -> None:
    slow_models.error = RuntimeError("CUDA error: an illegal memory access was encountered")
    server, clip = serve(), make_clip().read_bytes()
    assert server.post(clip)[0] == 503
    assert server.request("GET", "/ready")[0] == 503
    assert server.request("GET", "/health")[0] == 200
    assert server.post(clip)[0] == 503


def test_a_cut_clip_is_answered_up_to_the_cut(serve: Serve, make_clip: MakeClip) -> None:
    cut = make_clip(frames=60).read_bytes()[:-400]
    server = serve()
    status, headers, body = server.post(cut)
    assert status == 200
    assert headers["X-Foresight-Warning"].startswith("clip: is cut")
    assert 0 < len(read_clip(body)) < 60
    *_, end = read_records(BytesIO(server.post(cut, accept=FRAMES_TYPE)[2]))
    assert end.message is not None
    assert end.message["warnings"][0].startswith("clip: is cut")


def test_a_cut_stream_of_records_is_noticed() -> None:
    with pytest.raises(ValueError, match="is cut"):
        list(read_records(BytesIO(b"\0\0")))
    with pytest.raises(ValueError, match="is not application/x-foresight-frames"):
        list(read_records(BytesIO(b"<html>")))


def test_it_says_which_parts_came_from_the_hub(nano: Any) -> None:
    assert nano.describe()["hub_parts"] == {}
    pinned = {"vlm": "owner/name@v1"}
    assert replace(nano, stack=replace(nano.stack, hub_parts=pinned)).describe()["hub_parts"] == pinned


def test_an_adapter_of_its_own_serves_its_mode_alone(nano: Any, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    save_adapter(untrained_adapter(nano.stack, "latent"), folder, stack_fingerprint=nano.stack.fingerprint)
    options = ServeOptions(random_weights=True, device="cpu", adapter=folder)
    models = load_served_models(options)
    assert (models.modes, models.adapter, models.backend) == (("latent",), "mine", nano.backend)
    assert SimpleNamespace(**models.describe()).stack_fingerprint == nano.stack.fingerprint


@pytest.mark.parametrize("backend", ["fused", "eager"])
def test_an_engine_serves_the_frames_that_the_command_makes_with_it(
    backend: Any, nano: Any, serve: Serve, make_clip: MakeClip, tmp_path: Path
) -> None:
    adapter, engine = untrained_adapter(nano.stack, "conditioning"), tmp_path / "adapter_10m.engine"
    save_file({name: each.contiguous() for name, each in adapter.state_dict().items()}, tmp_path / "w")
    weights = MemberSource(
        name=WEIGHTS, path=tmp_path / "w", dtype="float32", target=EngineTarget(kind="weights")
    )
    stack = nano.stack
    tokens = (math.prod(grid) for grid in (stack.vlm.token_grid, stack.dino.token_grid))
    bucket = EngineBucket(batch=1, vlm_tokens=next(tokens), dino_tokens=next(tokens))
    write_engine(
        engine,
        [weights],
        adapter=adapter.config,
        stack_fingerprint=stack.fingerprint,
        buckets=[bucket],
    )
    options = ServeOptions(random_weights=True, device="cpu", adapter=engine, backend=backend)
    models = load_served_models(options)
    server = serve(models)
    (described,) = json.loads(server.request("GET", "/v1/models")[2])["data"]
    assert described["adapter"] == "adapter_10m.engine"
    assert described["backend"].startswith(f"{backend} ({WEIGHTS}")
    assert described["modes"] == ["conditioning"]

    clip, out = make_clip(frames=12), tmp_path / "out.mp4"
    arguments = (
        "--adapter",
        engine,
        "--backend",
        backend,
        "--random-weights",
        "--device",
        "cpu",
        "--seed",
        5,
    )
    assert main([*map(str, (clip, "-o", out, *arguments))]) == 0
    status, _, body = server.post(clip.read_bytes(), seed=5)
    assert status == 200
    np.testing.assert_array_equal(read_clip(body), read_clip(out))
