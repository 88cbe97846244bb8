from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from foresight.models.presets import STACKS
from foresight.models.sigmas import distilled_sigmas, linear_sigmas, sigma_schedule


def test_seven_distilled_steps_are_the_published_levels() -> None:
    assert distilled_sigmas(7) == (1.0, 0.9937, 0.9875, 0.9812, 0.9750, 0.9094, 0.7250, 0.0)


@pytest.mark.parametrize("steps", range(1, 8))
def test_fewer_distilled_steps_keep_both_ends_and_decrease(steps: int) -> None:
    levels = distilled_sigmas(steps)
    assert len(levels) == steps + 1
    assert (levels[0], levels[-1]) == (1.0, 0.0)
    assert all(level > lower for level, lower in pairwise(levels))
    assert set(levels) <= set(distilled_sigmas(7))


@pytest.mark.parametrize("steps", [0, -1, 8])
def test_refuses_steps_that_the_distilled_model_has_not_seen(steps: int) -> None:
    with pytest.raises(ValueError, match="1 to 7 steps"):
        distilled_sigmas(steps)


def test_linear_levels_are_even_and_shift_bends_them_towards_noise() -> None:
    assert linear_sigmas(4) == (1.0, 0.75, 0.5, 0.25, 0.0)
    assert linear_sigmas(2, shift=2.0) == pytest.approx((1.0, 2 / 3, 0.0))


def test_refuses_impossible_linear_schedules() -> None:
    with pytest.raises(ValueError, match="steps 0"):
        linear_sigmas(0)
    with pytest.raises(ValueError, match="shift 0"):
        linear_sigmas(4, shift=0.0)


def test_a_stack_names_its_schedule() -> None:
    assert sigma_schedule(STACKS["full"], 7) == distilled_sigmas(7)
    assert sigma_schedule(STACKS["nano"], 4) == linear_sigmas(4, shift=STACKS["nano"].schedule_shift)
    assert sigma_schedule(replace(STACKS["nano"], schedule_shift=1.0), 2) == (1.0, 0.5, 0.0)
