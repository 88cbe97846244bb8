"""The command answers wrong input with one line."""

from pathlib import Path

import pytest

from foresight.training.cli import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nano", "--stages", "vaes"], "stage 'vaes': must be one of vae, decoder"),
        (["nano", "--length", "0"], "length 0.0: must be positive"),
        (["evaluate", "--out", "nowhere/x.json"], "the folder nowhere does not exist"),
        (["evaluate", "--out", "x.json", "--clips", "0"], "clips 0: must be at least 1"),
        (["nano", "--device", "cuda", "--run", "run"], "device 'cuda': this machine has no usable GPU"),
        (["adapter", "--output", "out", "--run", "run", "--steps", "0"], "steps 0: must be at least 1"),
    ],
)
def test_errors_name_the_value(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("foresight-train: error: ")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
