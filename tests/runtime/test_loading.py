"""Which adapter a command loads, in which mode, and what runs it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from foresight.adapters import (
    WEIGHTS,
    Adapter,
    EngineBucket,
    EngineTarget,
    MemberSource,
    adapter_config,
    build_adapter,
    save_adapter,
    write_engine,
)
from foresight.models.stack import Stack
from foresight.runtime.engine_models import load_served_models
from foresight.runtime.loading import load_models
from foresight.runtime.reconstruct import main
from foresight.runtime.server_options import ServeOptions
from foresight.runtime.translators import stack_shape

MakeClip = Callable[..., Path]
FINGERPRINT = "nano-random"


@pytest.fixture(scope="module")
def latent_adapter() -> Adapter:
    grid = (2, 4, 6)
    return build_adapter(
        adapter_config("cross_attention", "5m", vlm_dim=3584, dino_dim=192, output_dim=128, output_grid=grid)
    ).eval()


@pytest.fixture(scope="module", params=["folder", "engine"])
def latent(request: pytest.FixtureRequest, latent_adapter: Adapter, tmp_path_factory: Any) -> Path:
    """An adapter of the latent mode, as a checkpoint and as an engine."""
    path: Path = tmp_path_factory.mktemp("adapters") / "latent_5m"
    if request.param == "folder":
        return save_adapter(latent_adapter, path, stack_fingerprint=FINGERPRINT)
    file = path.with_suffix(".safetensors")
    save_file(dict(latent_adapter.state_dict()), file)
    source = MemberSource(name=WEIGHTS, path=file, dtype="float32", target=EngineTarget(kind="weights"))
    # A bucket that is not the stack's: the kernels are prepared for what the stack has.
    bucket = EngineBucket(batch=1, vlm_tokens=8, dino_tokens=8)
    write_engine(
        path, [source], adapter=latent_adapter.config, stack_fingerprint=FINGERPRINT, buckets=[bucket]
    )
    return path


def run(*arguments: object) -> int:
    return main([*(str(argument) for argument in arguments), "--random-weights", "--device", "cpu"])


def test_the_mode_is_the_adapters_own(latent: Path, make_clip: MakeClip, tmp_path: Path) -> None:
    clip, report = make_clip(frames=3), tmp_path / "report.json"
    assert run(clip, "-o", tmp_path / "out.mp4", "--report", report, "--adapter", latent) == 0
    content = json.loads(report.read_text())
    assert (content["mode"], content["adapter"]) == ("latent", "latent_5m")
    assert "denoise" not in content["stages"]


def test_another_mode_is_refused_before_the_stack_is_loaded(
    latent: Path,
    make_clip: MakeClip,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Stack, "load", None)
    clip = make_clip()
    assert run(clip, "-o", tmp_path / "out.mp4", "--adapter", latent, "--mode", "conditioning") == 2
    expected = f"mode 'conditioning': {latent} was made for 'latent'; leave --mode out"
    assert capsys.readouterr().err == f"foresight-reconstruct: error: {expected}\n"
    assert list(tmp_path.iterdir()) == [clip]


def test_a_mode_that_agrees_is_taken(latent: Path) -> None:
    options: dict[str, Any] = {"device": "cpu", "random_weights": True, "adapter": latent}
    assert load_models("nano", mode="latent", **options).mode == "latent"


@pytest.mark.parametrize("backend", ["fused", "eager"])
def test_a_backend_by_name_for_the_stacks_own_adapter(
    backend: str, make_clip: MakeClip, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    arguments = (make_clip(frames=3), "-o", tmp_path / "out.mp4", "--report", report, "--backend", backend)
    assert run(*arguments) == 0
    described = json.loads(report.read_text())["backend"]
    assert described.startswith(f"{backend} (")
    line = f"foresight-reconstruct: conditioning_10m, untrained: backend {described}\n"
    assert capsys.readouterr().err == (line if backend == "fused" else "")


@pytest.mark.parametrize("backend", ["fused", "eager"])
def test_a_backend_by_name_for_an_adapter_that_is_given(backend: Any, latent: Path) -> None:
    models = load_models("nano", device="cpu", random_weights=True, adapter=latent, backend=backend)
    assert models.adapter.describe().name == backend
    shape = stack_shape(models.stack)
    features = (
        torch.randn(1, count, dim, dtype=models.adapter.dtype)
        for count, dim in ((shape.vlm_tokens, 3584), (shape.dino_tokens, 192))
    )
    assert models.adapter(*features).shape == (1, 128, 2, 4, 6)


def test_a_named_backend_serves_both_modes() -> None:
    models = load_served_models(ServeOptions(random_weights=True, device="cpu", backend="fused"))
    assert models.modes == ("conditioning", "latent")
    assert models.backend.startswith("fused (")
    assert ";" not in models.backend
    models.close()
    with pytest.raises(ValueError, match="is closed"):
        models.translators["latent"](torch.zeros(1, 1, 1), torch.zeros(1, 1, 1))


def test_the_stacks_shape_is_that_of_its_features() -> None:
    stack = Stack.load("nano", random_weights=True)
    video = torch.zeros(1, 3, 9, 128, 192)
    with torch.inference_mode():
        vlm, dino = stack.vlm(stack.vlm.preprocess(video)), stack.dino(stack.dino.preprocess(video))
    shape = stack_shape(stack)
    assert (shape.batch, shape.vlm_tokens, shape.dino_tokens) == (1, vlm.shape[1], dino.shape[1])
    assert shape.vlm_tokens == math.prod(stack.vlm.token_grid)


def test_the_cpu_loads_no_compiler() -> None:
    program = (
        "import sys; from foresight.runtime.libraries import import_libraries; import_libraries();"
        "from foresight.runtime.loading import load_models;"
        "load_models('nano', device='cpu', random_weights=True);"
        "names = {'triton', 'onnxruntime', 'torch._dynamo', 'torch._inductor', 'foresight.kernels.operators'};"
        "print(sorted(names & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
