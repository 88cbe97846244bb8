"""A package is first run in another process, whose end, however bad, is only a reason."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from foresight.adapters import EngineFile, EngineParity, EngineTarget, MemberSource, open_aoti
from foresight.export import cli, job, targets, trial
from foresight.export.aoti import export_aoti
from foresight.export.parity import compare_outputs, measure_parity, parity_cases
from foresight.export.portable import PortableAdapter
from foresight.export.request import Request
from foresight.export.trial import TrialError, try_package

from .conftest import BUCKET, MakeAdapter

CPU = torch.device("cpu")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    path = tmp_path / "cpu.pt2"
    path.write_bytes(b"no package")
    return path


def replace_python(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """Have the other process run a shell script."""
    python = folder / "python"
    python.write_text(f"#!/bin/sh\nulimit -c 0\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("kill -SEGV $$", "ended with SIGSEGV"),
        ("echo a remark >&2; echo torch: no such kernel >&2; exit 3", "exit code 3: torch: no such kernel"),
        ("exit 3", "exit code 3: it said nothing"),
        ("exit 0", "ended without an answer"),
        ("exec sleep 60", "did not end within 1 seconds"),
    ],
)
def test_how_the_other_process_ended_is_the_reason(
    script: str, expected: str, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_python(monkeypatch, tmp_path, script)
    monkeypatch.setattr(trial, "_SECONDS", 1)
    with pytest.raises(TrialError, match=expected):
        try_package(package, [], CPU)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["cpu.pt2", "python"]


def test_a_package_that_torch_refuses_is_a_reason_of_one_line(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A folder of the same name where the command is run is not the package that is imported.
    (tmp_path / "foresight").mkdir()
    (tmp_path / "foresight" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrialError, match=r"exit code 1: torch refused the package: .+") as caught:
        try_package(package, [], CPU)
    assert "\n" not in str(caught.value)


def made_quickly(request: Request) -> list[MemberSource]:
    path = request.folder / "model.onnx"
    path.write_text("quick")
    parity = EngineParity(max_error=0.0, bound=1e-4, cases=1)
    return [
        MemberSource(
            name=path.name, path=path, dtype="float32", target=EngineTarget(kind="onnx"), parity=parity
        )
    ]


@pytest.mark.parametrize("named", [False, True])
def test_an_engine_goes_without_a_package_that_crashes(
    named: bool,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    replace_python(monkeypatch, tmp_path, "kill -SEGV $$")
    monkeypatch.setattr(targets, "export_aoti", lambda *each, **_: each[3].write_bytes(b"no package"))
    missing = targets.Target(lacking=lambda _: "there is no GPU", make=made_quickly)
    made = {
        "onnx": targets.Target(lacking=lambda _: None, make=made_quickly),
        "cpu": targets.Target(lacking=lambda _: None, make=targets.target_makers()["cpu"].make),
        "cuda": missing,
        "tensorrt": missing,
    }
    monkeypatch.setattr(job, "target_makers", lambda: made)
    output = tmp_path / "adapter.engine"
    arguments = [str(checkpoint), "-o", str(output), "--buckets", "1x24x16"]
    reason = "the process that tried it ended with SIGSEGV"
    if named:
        assert cli.main([*arguments, "--targets", "onnx", "cpu"]) == 2
        assert f"error: cpu.pt2: cannot be made here, {reason}" in capsys.readouterr().err
        assert not output.exists()
        return
    assert cli.main(arguments) == 0
    assert f"cpu.pt2: left out, {reason}\n" in capsys.readouterr().err
    with EngineFile(output) as engine:
        assert [each.name for each in engine.manifest.members] == ["weights.safetensors", "model.onnx"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_figure_is_that_of_a_run_in_this_process(
    dtype: torch.dtype, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    adapter, path = make_adapter("cross_attention"), tmp_path / "cpu.pt2"
    export_aoti(PortableAdapter(adapter).to(dtype), adapter, BUCKET, path, dtype=dtype)
    cases = parity_cases(adapter, [BUCKET], static=False)
    outputs = try_package(path, [case.inputs(dtype) for case in cases], CPU)
    tried = compare_outputs(adapter, cases, outputs, dtype=dtype, device=CPU)
    assert tried == measure_parity(adapter, cases, open_aoti(path, CPU), dtype=dtype)
    assert tried.holds
