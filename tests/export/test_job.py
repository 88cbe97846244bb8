"""From a checkpoint to an engine and to what its members answer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from foresight.adapters import EngineFile, EngineParity, MemberSource, load_adapter, load_engine_adapter
from foresight.export import cli, job, targets
from foresight.export.options import ExportOptions
from foresight.export.request import Request

BUCKETS = ("1x24x16",)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets that take no time: files that hold their own names."""

    def maker(name: str, error: float = 0.0):  # type: ignore[no-untyped-def]
        def make(request: Request) -> list[MemberSource]:
            path = request.folder / f"{name}.bin"
            path.write_text(name)
            parity = EngineParity(max_error=error, bound=1e-4, cases=1)
            kind = targets.EngineTarget(kind="onnx")
            return [MemberSource(name=path.name, path=path, dtype="float32", target=kind, parity=parity)]

        return make

    made = {
        "onnx": targets.Target(lacking=lambda _: None, make=maker("onnx")),
        "cpu": targets.Target(lacking=lambda _: None, make=maker("cpu", error=0.5)),
        "cuda": targets.Target(lacking=lambda _: "there is no GPU", make=maker("cuda")),
        "tensorrt": targets.Target(lacking=lambda _: "there is no GPU", make=maker("tensorrt")),
    }
    monkeypatch.setattr(job, "target_makers", lambda: made)


@pytest.mark.usefixtures("quick")
def test_what_cannot_be_made_is_left_out_and_said(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "adapter.engine"
    assert cli.main([str(checkpoint), "-o", str(output), "--buckets", *BUCKETS]) == 0
    said = capsys.readouterr()
    assert "onnx.bin: float32, differs from eager by 0.00e+00" in said.err
    assert "cpu.bin: left out, it differs from eager by 5.00e-01, 1.00e-04 allowed" in said.err
    assert "cuda: left out, there is no GPU" in said.err
    assert said.out.startswith(f"{output}: ")
    with EngineFile(output) as engine:
        assert [member.name for member in engine.manifest.members] == ["weights.safetensors", "onnx.bin"]
        assert engine.manifest.stack_fingerprint == "nano-1"
        assert engine.manifest.quality == {"psnr_db": 21.5}
        assert engine.manifest.versions["torch"] == torch.__version__
        assert engine.manifest.members[0].dtype == "float16"
        inside, outside = load_engine_adapter(engine), load_adapter(checkpoint)
    vlm, dino = torch.randn(1, 24, 24), torch.randn(1, 16, 16)
    assert torch.equal(inside(vlm, dino), outside(vlm, dino))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--targets", "cuda"], "cuda: cannot be made here, there is no GPU"),
        (["--targets", "onnx", "cpu"], "cpu.bin: cannot be made here, it differs from eager"),
        (["--buckets", "1x24"], "bucket '1x24'"),
        (["--stack", "other"], "stack 'other'"),
    ],
)
def test_what_was_asked_for_and_cannot_be_made_is_an_error(
    arguments: list[str], expected: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "adapter.engine"
    if "--buckets" not in arguments and "--stack" not in arguments:
        arguments = [*arguments, "--buckets", *BUCKETS]
    assert cli.main([str(checkpoint), "-o", str(output), *arguments]) == 2
    assert expected in capsys.readouterr().err.splitlines()[-1]
    assert not output.exists()


@pytest.mark.usefixtures("quick")
def test_an_engine_is_replaced_only_when_told_to(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "adapter.engine"
    output.write_text("mine")
    arguments = [str(checkpoint), "-o", str(output), "--buckets", *BUCKETS]
    assert cli.main(arguments) == 2
    assert "exists, use --overwrite" in capsys.readouterr().err
    assert output.read_text() == "mine"
    assert cli.main([*arguments, "--overwrite"]) == 0
    EngineFile(output).close()


def test_a_folder_that_is_no_checkpoint_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([str(tmp_path), "-o", str(tmp_path / "x.engine")]) == 2
    assert "config.json is missing" in capsys.readouterr().err


def test_this_machine_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = ExportOptions(checkpoint=tmp_path, output=tmp_path / "x.engine")
    makers = targets.target_makers()
    if not torch.cuda.is_available():
        assert "no CUDA device" in str(makers["cuda"].lacking(options))
    monkeypatch.setattr(targets.shutil, "which", lambda _: None)
    assert makers["cpu"].lacking(options) == "no C++ compiler found"
    monkeypatch.setattr(targets.importlib.util, "find_spec", lambda _: None)
    assert "onnxruntime not installed" in str(makers["onnx"].lacking(options))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_this_cpu_can_make_is_within_tolerance(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    options = ExportOptions(
        checkpoint=checkpoint, output=tmp_path / "adapter.engine", targets=("onnx", "cpu"), buckets=BUCKETS
    )
    manifest = job.export_engine(options).manifest
    made = {member.name: member for member in manifest.members}
    assert {"weights.safetensors", "model.onnx", "cpu.pt2"} <= made.keys()
    for member in made.values():
        assert member.parity is None or member.parity.holds
    assert made["cpu.pt2"].parity is not None
    assert made["cpu.pt2"].parity.max_error < 1e-5
    with EngineFile(options.output) as engine:
        assert all(engine.read(name) for name in made)
