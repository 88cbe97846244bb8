"""Noise levels at which the video transformer is asked: decreasing, from 1 (pure noise) to 0 (the video)."""

from __future__ import annotations

from foresight.models.presets import StackConfig

__all__ = ["DISTILLED_SIGMAS", "distilled_sigmas", "linear_sigmas", "sigma_schedule"]

# First pass of Lightricks' configs/ltxv-2b-0.9.8-distilled.yaml.
DISTILLED_SIGMAS = (1.0, 0.9937, 0.9875, 0.9812, 0.9750, 0.9094, 0.7250)


def sigma_schedule(config: StackConfig, steps: int) -> tuple[float, ...]:
    """Return the `steps + 1` decreasing noise levels of a stack's schedule; the first is 1.0, the last 0.0.

    Raises ValueError for a number of steps that the schedule does not have.
    """
    if config.schedule == "distilled":
        return distilled_sigmas(steps)
    return linear_sigmas(steps, shift=config.schedule_shift)


def linear_sigmas(steps: int, *, shift: float = 1.0) -> tuple[float, ...]:
    """Return evenly spaced levels, bent by `shift * s / (1 + (shift - 1) * s)` (Stable Diffusion 3).

    Raises ValueError for less than one step or a shift that is not positive.
    """
    if steps < 1:
        raise ValueError(f"steps {steps}: must be 1 or more")
    if shift <= 0:
        raise ValueError(f"shift {shift}: must be positive")
    levels = (1 - index / steps for index in range(steps + 1))
    return tuple(shift * level / (1 + (shift - 1) * level) for level in levels)


def distilled_sigmas(steps: int) -> tuple[float, ...]:
    """Return the levels of the distilled LTX-Video 0.9.8, thinned evenly for less than 7 steps.

    Raises ValueError for less than 1 or more than 7 steps: the model has not seen other levels.
    """
    most = len(DISTILLED_SIGMAS)
    if not 1 <= steps <= most:
        raise ValueError(f"steps {steps}: the distilled schedule has 1 to {most} steps")
    levels = (*DISTILLED_SIGMAS, 0.0)
    return tuple(levels[round(index * most / steps)] for index in range(steps + 1))
