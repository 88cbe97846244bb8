"""The tuning command keeps what is faster, judged here by a stand-in for the GPU."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from foresight.kernels import Launch, LaunchTable
from foresight.runtime import tuning
from foresight.runtime.tuning import TuningCase, main, tune

ASKED = [("product", (640, 448, 1792)), ("linear", (77, 448, 448))]


class FakeCase:
    """Costs less with wider products and with linear layers of few warps; one launch does not fit."""

    def __init__(self, case: TuningCase) -> None:
        self.name = case.size

    def asked(self, table: LaunchTable) -> Sequence[tuple[str, tuple[int, ...]]]:  # noqa: ARG002
        return ASKED

    def cost(self, table: LaunchTable) -> float:
        product, linear = (table.nearest(*asked) for asked in ASKED)
        if product.columns == 256:
            return float("inf")
        return 100 - product.columns / 4 + linear.warps


def test_it_keeps_the_fastest_launch_of_every_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "AdapterCase", FakeCase)
    notes: list[str] = []
    table = LaunchTable(device="NVIDIA Test", programmatic=1, entries={"product": {ASKED[0][1]: Launch()}})
    tuned = tune(table, [TuningCase()], note=notes.append)
    assert tuned.nearest(*ASKED[0]).columns == 128
    assert tuned.nearest(*ASKED[1]).warps == 2
    assert tuned.measured
    assert notes[0] == "10m: 88.00 us to begin with"


def test_launches_that_no_case_asks_for_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "AdapterCase", FakeCase)
    kept = {"finish": {(640, 3584, 1152): Launch(rows=2)}}
    table = LaunchTable(device="NVIDIA Test", programmatic=1, entries=kept)
    tuned = tune(table, [TuningCase()], note=lambda _: None)
    assert tuned.entries["finish"] == kept["finish"]
    assert not tuned.measured


def test_it_learns_which_launches_a_forward_asks_for() -> None:
    recorder = tuning._Recorder(device="NVIDIA Test", programmatic=1, entries={})
    assert recorder.nearest("linear", [77, 448, 448]) == Launch()
    assert list(recorder.seen) == [("linear", (77, 448, 448))]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--part", "9", "9"], "part 9 9: must be"),
        (["--cases", "5m"], "cases '5m': must be how one of these begins: 10m 256"),
        (["--cases", "100m"], "measures on a GPU"),
    ],
)
def test_the_command_refuses_in_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["tuning", *arguments])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=message):
        main()
