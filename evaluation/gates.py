"""GREEN, YELLOW or RED: what the research plans ask of a figure, and this project's own stricter bars.

The plans' gates leave bands between "acceptable" and "failure" without a verdict; the newer plan says of such
a result "investigate before pivoting" (section 7.2), which is YELLOW here. `Gate.accepts` tells the two
apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["GATES", "Gate", "Grade", "grade", "meets_bar", "param_efficiency"]


class Grade(StrEnum):
    """A verdict: proceed, proceed with caution, or stop and change course."""

    GREEN = "GREEN"
    YELLOW = "YELLOW"
    RED = "RED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One figure's thresholds, all strict: GREEN past `target`, RED past `failure`, `bar` this project's own.

    Raises ValueError where they do not run from best to worst.
    """

    name: str
    source: str
    higher_is_better: bool
    target: float
    acceptable: float
    failure: float
    bar: float | None = None
    unit: str = ""

    def __post_init__(self) -> None:
        order = [self.target, self.acceptable, self.failure]
        if self.bar is not None:
            order.insert(0, self.bar)
        if order != sorted(order, reverse=self.higher_is_better):
            raise ValueError(f"gate {self.name!r}: {order} must run from best to worst")

    def grade(self, value: float) -> Grade:
        """The verdict on a value; raises ValueError for one that is not a number."""
        if self._better(value, self.target):
            return Grade.GREEN
        if self.failure != self.target and not self._better(self.failure, value):
            return Grade.YELLOW
        return Grade.RED

    def accepts(self, value: float) -> bool:
        """Whether the plan calls this value acceptable or better."""
        return self._better(value, self.acceptable)

    def meets_bar(self, value: float) -> bool:
        """Whether the value passes this project's own bar, or the plan's target where it sets none."""
        return self._better(value, self.target if self.bar is None else self.bar)

    def _better(self, value: float, threshold: float) -> bool:
        if math.isnan(value) or math.isnan(threshold):
            raise ValueError(f"gate {self.name!r}: the value is not a number, there is nothing to grade")
        return value > threshold if self.higher_is_better else value < threshold


def _gate(
    name: str,
    source: str,
    thresholds: tuple[float, float, float],
    *,
    higher: bool = False,
    bar: float | None = None,
    unit: str = "",
) -> Gate:
    target, acceptable, failure = thresholds
    return Gate(
        name=name,
        source=source,
        higher_is_better=higher,
        target=target,
        acceptable=acceptable,
        failure=failure,
        bar=bar,
        unit=unit,
    )


# "plan 004" and "plan 000" are the newer and the earlier research plan; the newer stands where they disagree.
# A gate whose three thresholds are equal has a target only: GREEN or RED.
GATES: Mapping[str, Gate] = {
    gate.name: gate
    for gate in (
        _gate("param_efficiency", "plan 004, 6.1", (0.90, 0.85, 0.80), higher=True, bar=0.95),
        _gate("lpips", "plan 004, E2.4", (0.18, 0.20, 0.25)),
        _gate("spatial_iou", "plan 004, E2.4", (0.75, 0.70, 0.65), higher=True, bar=0.85),
        _gate("latency_ms", "plan 004, E2.4, adapter alone", (150.0, 200.0, 300.0), bar=0.040, unit="ms"),
        _gate("latency_overhead", "plan 004, 1, fraction of VLM-only", (0.25, 0.25, 0.25), bar=0.05),
        _gate("memory_gb", "plan 004, 6.2, adapter weights", (0.5, 0.5, 0.5), bar=0.025, unit="GB"),
        _gate("training_time_ratio", "plan 004, E2.1", (1.2, 1.5, 2.0)),
        _gate("lpips_go", "plan 000, 12", (0.30, 0.40, 0.40)),
        _gate("lpips_earlier", "plan 000, 5.1", (0.25, 0.35, 0.45)),
        _gate("quality_ratio", "plan 000, 5.1, 10M over 100M", (0.80, 0.70, 0.60), higher=True),
        _gate("test_train_gap", "plan 000, 5.1, fraction", (0.10, 0.20, 0.30)),
    )
}


def grade(name: str, value: float) -> Grade:
    """The plans' verdict on a figure; raises ValueError for a name not in `GATES` and for NaN."""
    return _find(name).grade(value)


def meets_bar(name: str, value: float) -> bool:
    """Whether a figure passes this project's own bar, or the plan's target; raises like `grade`."""
    return _find(name).meets_bar(value)


def _find(name: str) -> Gate:
    if name not in GATES:
        raise ValueError(f"gate {name!r} does not exist: must be one of {', '.join(GATES)}")
    return GATES[name]


def param_efficiency(lpips_small: float, lpips_large: float) -> float:
    """1 - (LPIPS(small) - LPIPS(large)) / LPIPS(large), plan 004, 6.1: 1 when the small adapter is as good.

    Raises ValueError unless both are finite, the small one's >= 0 and the large one's > 0.
    """
    if not (math.isfinite(lpips_small) and lpips_small >= 0):
        raise ValueError(f"LPIPS {lpips_small} of the small adapter: must be finite and >= 0")
    if not (math.isfinite(lpips_large) and lpips_large > 0):
        raise ValueError(f"LPIPS {lpips_large} of the large adapter: must be finite and > 0")
    return 1 - (lpips_small - lpips_large) / lpips_large
