"""One engine, every backend: the same answers, the best one taken, nothing damaged ever loaded."""

from __future__ import annotations

import logging
import re
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from foresight.adapters import (
    WEIGHTS,
    Adapter,
    EngineBucket,
    EngineDamagedError,
    EngineError,
    EngineHost,
    EngineTarget,
    MemberSource,
    build_adapter,
    write_engine,
)
from foresight.runtime import backend_choice, backend_weights
from foresight.runtime.backend import Backend, BackendName
from foresight.runtime.backend_choice import open_backend

from .small_adapter import small_config

CPU = torch.device("cpu")
BUCKET = EngineBucket(batch=1, vlm_tokens=24, dino_tokens=16)
CONFIG = small_config()


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    torch.manual_seed(0)
    return build_adapter(CONFIG).eval()


@pytest.fixture(scope="module")
def members(adapter: Adapter, tmp_path_factory: pytest.TempPathFactory) -> list[MemberSource]:
    """The weights, an ONNX file, and members for machines that this one is not."""
    pytest.importorskip("onnxruntime")
    from foresight.export.onnx_file import export_onnx

    folder = tmp_path_factory.mktemp("members")
    save_file(dict(adapter.state_dict()), folder / "w")
    export_onnx(adapter, BUCKET, folder / "m")
    (folder / "p").write_bytes(b"not even native code")
    elsewhere = EngineTarget(kind="aoti", device="cpu", architecture="riscv64", runtime="2.11")
    plan = EngineTarget(kind="tensorrt", device="cuda", architecture="sm_90", runtime="11.1.0", bucket=BUCKET)

    def source(name: str, file: str, target: EngineTarget) -> MemberSource:
        return MemberSource(name=name, path=folder / file, dtype="float32", target=target)

    return [
        source(WEIGHTS, "w", EngineTarget(kind="weights")),
        source("model.onnx", "m", EngineTarget(kind="onnx")),
        source("cpu.pt2", "p", elsewhere),
        source("tensorrt-11.1.0-sm_90.plan", "p", plan),
    ]


def make_engine(folder: Path, members: list[MemberSource]) -> Path:
    path = folder / "adapter.engine"
    write_engine(path, members, adapter=CONFIG, stack_fingerprint="nano-1", buckets=[BUCKET])
    return path


@pytest.fixture
def path(members: list[MemberSource], tmp_path: Path) -> Path:
    return make_engine(tmp_path, members)


def opened(path: Path, backend: BackendName | None = None, **options: Any) -> Backend:
    options = {"device": CPU, "dtype": torch.float32, "stack_fingerprint": "nano-1"} | options
    return open_backend(path, backend=backend, **options)


def features(batch: int = 1, tokens: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return (
        torch.randn(batch, tokens, 24, generator=generator),
        torch.randn(batch, 16, 16, generator=generator),
    )


@pytest.mark.parametrize("name", ["onnx", "fused", "eager"])
def test_every_backend_answers_as_the_adapter_does(name: BackendName, path: Path, adapter: Adapter) -> None:
    backend = opened(path, name)
    assert backend.describe().name == name
    vlm, dino = features(batch=2)
    options = {"vlm_grid": (2, 3, 4), "dino_grid": (1, 4, 4), "vlm_lengths": torch.tensor([24, 7])}
    with torch.inference_mode():
        expected = adapter(vlm, dino, **options)
        vlm[1, 7:] = torch.nan
        output = backend(vlm, dino, **options)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-4)
    backend.close()
    with pytest.raises(ValueError, match="is closed"):
        backend(vlm, dino)


def test_the_best_that_runs_here_is_taken_and_said_in_one_line(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="foresight.runtime"):
        backend = opened(path)
    assert backend.describe().name == "onnx"
    [record] = caplog.records
    message = record.getMessage()
    assert "backend onnx (model.onnx, float32 on cpu)" in message
    assert "passed over aoti: cpu.pt2 was made for riscv64" in message
    assert "\n" not in message


def test_on_a_gpu_the_kernels_stand_between_a_plan_and_a_package(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise EngineError("no")

    monkeypatch.setattr(backend_choice, "_open", refuse)
    with pytest.raises(EngineError, match=r"\(tensorrt: no; fused: no; aoti: no; eager: no\)"):
        opened(path, device=torch.device("cuda"))


def test_the_kernels_are_prepared_for_the_shape_that_is_asked_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def prepare(_adapter: Adapter, _device: Any, _dtype: Any, tokens: list[int], **options: int) -> None:
        asked.append((tokens, options))
        raise ValueError("enough")

    monkeypatch.setattr(backend_weights, "prepare", prepare)
    shape = EngineBucket(batch=1, vlm_tokens=96, dino_tokens=64)
    for options in ({"shape": shape}, {}):
        with pytest.raises(EngineError, match="cannot serve it: enough"):
            opened(path, "fused", **options)
    assert asked == [([96], {"dino_tokens": 64, "batch": 1}), ([24], {"dino_tokens": 16, "batch": 1})]


def test_a_member_of_another_dtype_is_taken_only_by_name(path: Path, adapter: Adapter) -> None:
    assert opened(path, dtype=torch.bfloat16).describe().name in ("fused", "eager")
    backend = opened(path, "onnx", dtype=torch.bfloat16)
    vlm, dino = (each.bfloat16() for each in features())
    with torch.inference_mode():
        output, expected = backend(vlm, dino), adapter(vlm.float(), dino.float())
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected, rtol=0.01, atol=0.01)


def test_an_engine_of_weights_alone_runs(members: list[MemberSource], tmp_path: Path) -> None:
    assert opened(make_engine(tmp_path, members[:1])).describe().name == "fused"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("aoti", r"cannot be run here \(aoti: cpu\.pt2 was made for riscv64"),
        ("tensorrt", r"cannot be run here \(tensorrt: TensorRT needs a GPU"),
        ("other", r"backend 'other': must be one of tensorrt, fused, aoti, onnx, eager"),
    ],
)
def test_a_named_backend_that_cannot_run_is_an_error(name: Any, expected: str, path: Path) -> None:
    with pytest.raises(EngineError, match=expected) as caught:
        opened(path, name)
    assert "\n" not in str(caught.value)


def test_an_engine_of_another_stack_or_another_hash_is_refused(path: Path) -> None:
    with pytest.raises(EngineError, match="was made for the features of stack 'nano-1'"):
        opened(path, stack_fingerprint="full-1")
    with pytest.raises(EngineError, match="not the expected"):
        opened(path, expected_sha256="0" * 64)


@pytest.mark.parametrize("index", range(4))
def test_one_flipped_byte_in_any_member_stops_the_engine_before_anything_is_loaded(
    path: Path, members: list[MemberSource], monkeypatch: pytest.MonkeyPatch, index: int
) -> None:
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(members[index].name)
        content = archive.read(info)
    data = bytearray(path.read_bytes())
    # The two members that this machine cannot run have the same bytes: the right ones lie behind their own header.
    data[data.index(content, info.header_offset) + len(content) // 2] ^= 1
    path.write_bytes(data)
    loaded: list[object] = []
    monkeypatch.setattr("foresight.runtime.backend_compiled.open_onnx", loaded.append)
    monkeypatch.setattr(backend_choice, "load_engine_adapter", lambda *each, **_: loaded.append(each))
    with pytest.raises(EngineDamagedError, match=f"member '{re.escape(members[index].name)}' is damaged"):
        opened(path)
    assert not loaded


def test_a_package_whose_hash_is_wrong_is_not_loaded(
    members: list[MemberSource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = EngineHost.of(CPU)
    target = EngineTarget(kind="aoti", device="cpu", architecture=host.machine, runtime=host.torch_version)
    path = make_engine(tmp_path, [members[0], replace(members[2], target=target)])
    path.write_bytes(path.read_bytes().replace(b"native code", b"nATIVE code"))
    loaded: list[object] = []
    monkeypatch.setattr("foresight.runtime.backend_compiled.open_aoti", lambda *each: loaded.append(each))
    with pytest.raises(EngineDamagedError, match=r"member 'cpu\.pt2' is damaged"):
        opened(path)
    assert not loaded


def test_a_package_that_torch_refuses_is_passed_over(members: list[MemberSource], tmp_path: Path) -> None:
    host = EngineHost.of(CPU)
    target = EngineTarget(kind="aoti", device="cpu", architecture=host.machine, runtime=host.torch_version)
    path = make_engine(tmp_path, [*members[:2], replace(members[2], target=target)])
    assert opened(path).describe().name == "onnx"
    with pytest.raises(EngineError, match="torch refused the package"):
        opened(path, "aoti")


def test_tensorrt_is_not_touched_without_a_driver(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_choice, "cuda_driver_refusal", lambda: "no CUDA driver is installed")
    monkeypatch.setattr(EngineHost, "of", lambda _: EngineHost.of)
    before = {name for name in sys.modules if "tensorrt" in name}
    with pytest.raises(EngineError, match="TensorRT cannot be used: no CUDA driver is installed"):
        opened(path, "tensorrt", device=torch.device("cuda"))
    assert {name for name in sys.modules if "tensorrt" in name} == before


def test_a_bare_plan_is_told_what_it_needs(tmp_path: Path) -> None:
    plan = tmp_path / "adapter.engine"
    plan.write_bytes(b"ftrt" + bytes(100))
    with pytest.raises(EngineError, match="without an adapter to stand for"):
        opened(plan)
    with pytest.raises(EngineError, match="as a bare TensorRT plan: TensorRT needs a GPU"):
        opened(plan, plan_config=CONFIG)
    with pytest.raises(EngineError, match="the backend onnx has nothing to run in it"):
        opened(plan, "onnx", plan_config=CONFIG)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_native_package_is_taken_first_and_answers_as_the_adapter_does(
    members: list[MemberSource], adapter: Adapter, tmp_path: Path
) -> None:
    from foresight.export.aoti import export_aoti
    from foresight.export.portable import PortableAdapter

    host = EngineHost.of(CPU)
    package = tmp_path / "cpu.pt2"
    export_aoti(PortableAdapter(adapter), adapter, BUCKET, package, dtype=torch.float32)
    target = EngineTarget(
        kind="aoti",
        device="cpu",
        architecture=host.machine,
        capability=" ".join(sorted(host.instructions)),
        runtime=host.torch_version,
    )
    source = MemberSource(name="cpu.pt2", path=package, dtype="float32", target=target)
    backend = opened(make_engine(tmp_path, [*members[:2], source]))
    assert backend.describe().name == "aoti"
    for batch, tokens in ((1, 24), (3, 10)):
        vlm, dino = features(batch, tokens)
        with torch.inference_mode():
            torch.testing.assert_close(backend(vlm, dino), adapter(vlm, dino), rtol=0, atol=1e-4)
