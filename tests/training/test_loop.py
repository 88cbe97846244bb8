"""The loop trains, averages, logs, saves and continues."""

import json
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from foresight.training.loop import Loop, LoopConfig

CONFIG = LoopConfig(steps=60, muon_rate=0.1, adamw_rate=0.05, warm_up=5, average=0.5, log_every=10)


class Regression(nn.Module):
    """Fit a fixed linear map; batches come from a generator that continues across calls."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        self.wanted = torch.randn(4, 2)

    def forward(self) -> dict[str, Tensor]:
        inputs = torch.randn(32, 4, generator=torch.Generator().manual_seed(7))
        loss = (self.net(inputs) - inputs @ self.wanted).square().mean()
        return {"loss": loss, "double": 2 * loss}


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_loss_falls_and_every_scalar_is_logged(tmp_path: Path) -> None:
    task = Regression()
    assert Loop(task, task, CONFIG, tmp_path).run()
    logged = lines(tmp_path)
    assert [line["step"] for line in logged] == [10, 20, 30, 40, 50, 60]
    assert logged[-1]["loss"] < 0.3 * logged[0]["loss"]
    assert logged[-1]["double"] == pytest.approx(2 * logged[-1]["loss"], rel=1e-5)


def test_a_run_cut_by_its_deadline_continues_to_the_same_weights(tmp_path: Path) -> None:
    whole, cut = Regression(), Regression()
    Loop(whole, whole, CONFIG, tmp_path / "whole").run()
    while not Loop(cut, cut, CONFIG, tmp_path / "cut").run(deadline=time.monotonic()):
        cut = Regression()
    assert [line["step"] for line in lines(tmp_path / "cut")] == [10, 20, 30, 40, 50, 60]
    for one, other in zip(whole.parameters(), cut.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_the_module_ends_with_averaged_weights(tmp_path: Path) -> None:
    task = Regression()
    loop = Loop(task, task, LoopConfig(steps=3, muon_rate=0.1, adamw_rate=0.1, average=0.9), tmp_path)
    start = [parameter.detach().clone() for parameter in task.parameters()]
    loop.run()
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    for first, last, mean, used in zip(
        start, saved["parameters"], saved["averages"], task.parameters(), strict=True
    ):
        torch.testing.assert_close(mean, used.detach())
        assert (mean - first).norm() < (last - first).norm()


def test_a_state_of_another_module_is_refused(tmp_path: Path) -> None:
    task = Regression()
    Loop(task, task, CONFIG, tmp_path).run()
    other = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="the state of another module"):
        Loop(other, lambda: {}, CONFIG, tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    layer = nn.Linear(2, 2)
    loop = Loop(layer, lambda: {"loss": layer.weight.sum() * float("nan")}, CONFIG, tmp_path)
    with pytest.raises(FloatingPointError, match="at step 10"):
        loop.run()


@pytest.mark.parametrize(("name", "value"), [("steps", 0), ("average", 1.0)])
def test_bad_settings_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} {value}"):
        LoopConfig(**{"steps": 1, "muon_rate": 1.0, "adamw_rate": 1.0, name: value})


def test_a_continued_run_draws_other_batches_than_its_first_piece(tmp_path: Path) -> None:
    config = LoopConfig(steps=4, muon_rate=0.1, adamw_rate=0.1, log_every=2)
    drawn: list[float] = []

    def loss() -> dict[str, Tensor]:
        drawn.append(float(torch.rand(())))
        return {"loss": layer.weight.square().sum()}

    for _ in range(2):
        torch.manual_seed(0)
        layer = nn.Linear(2, 2)
        Loop(layer, loss, config, tmp_path).run(deadline=time.monotonic())
    assert len(drawn) == len(set(drawn)) == 4
