"""Every gate at its edges, and the parameter efficiency of the plan's own example."""

from __future__ import annotations

import math

import pytest

from foresight.evaluation import GATES, Gate, Grade, grade, meets_bar, param_efficiency


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("param_efficiency", 0.901, Grade.GREEN),
        ("param_efficiency", 0.90, Grade.YELLOW),
        ("param_efficiency", 0.80, Grade.YELLOW),
        ("param_efficiency", 0.799, Grade.RED),
        ("lpips", 0.179, Grade.GREEN),
        ("lpips", 0.18, Grade.YELLOW),
        ("lpips", 0.25, Grade.YELLOW),
        ("lpips", 0.251, Grade.RED),
        ("spatial_iou", 0.76, Grade.GREEN),
        ("spatial_iou", 0.75, Grade.YELLOW),
        ("spatial_iou", 0.65, Grade.YELLOW),
        ("spatial_iou", 0.64, Grade.RED),
        ("latency_ms", 149.0, Grade.GREEN),
        ("latency_ms", 150.0, Grade.YELLOW),
        ("latency_ms", 300.0, Grade.YELLOW),
        ("latency_ms", 301.0, Grade.RED),
        ("lpips_go", 0.29, Grade.GREEN),
        ("lpips_go", 0.30, Grade.YELLOW),
        ("lpips_go", 0.40, Grade.YELLOW),
        ("lpips_go", 0.41, Grade.RED),
        ("lpips_earlier", 0.46, Grade.RED),
        ("quality_ratio", 0.81, Grade.GREEN),
        ("test_train_gap", 0.31, Grade.RED),
        ("memory_gb", 0.49, Grade.GREEN),
        ("memory_gb", 0.5, Grade.RED),
    ],
)
def test_grades_at_the_edges(name: str, value: float, expected: Grade) -> None:
    assert grade(name, value) is expected


def test_the_band_between_acceptable_and_failure_is_yellow_but_not_accepted() -> None:
    gate = GATES["lpips"]
    assert gate.grade(0.22) is Grade.YELLOW
    assert gate.accepts(0.19)
    assert not gate.accepts(0.22)


def test_own_bars_are_stricter_than_the_plans() -> None:
    assert grade("spatial_iou", 0.80) is Grade.GREEN
    assert not meets_bar("spatial_iou", 0.80)
    assert meets_bar("spatial_iou", 0.86)
    assert not meets_bar("latency_ms", 0.151)
    assert meets_bar("latency_ms", 0.039)
    assert meets_bar("lpips", 0.17)
    assert not meets_bar("lpips", 0.19)


def test_param_efficiency_of_the_plans_example() -> None:
    assert param_efficiency(0.16, 0.16) == pytest.approx(1)
    assert param_efficiency(0.176, 0.16) == pytest.approx(0.9)
    assert param_efficiency(0.19, 0.16) == pytest.approx(0.8125)
    assert param_efficiency(0.15, 0.16) > 1


@pytest.mark.parametrize(("small", "large"), [(0.1, 0.0), (0.1, math.nan), (-0.1, 0.2), (math.inf, 0.2)])
def test_param_efficiency_refuses_what_is_no_lpips(small: float, large: float) -> None:
    with pytest.raises(ValueError, match="LPIPS"):
        param_efficiency(small, large)


def test_an_unknown_gate_and_a_missing_number_are_refused() -> None:
    with pytest.raises(ValueError, match="'iou' does not exist"):
        grade("iou", 0.5)
    with pytest.raises(ValueError, match="not a number"):
        grade("lpips", math.nan)
    with pytest.raises(ValueError, match="not a number"):
        meets_bar("lpips", math.nan)


def test_a_gate_in_disorder_is_refused() -> None:
    with pytest.raises(ValueError, match="best to worst"):
        Gate(name="x", source="-", higher_is_better=True, target=0.5, acceptable=0.6, failure=0.4)
    with pytest.raises(ValueError, match="best to worst"):
        Gate(name="x", source="-", higher_is_better=False, target=0.5, acceptable=0.6, failure=0.7, bar=0.55)
