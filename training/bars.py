"""The nano stack's bars: what its measured quality has to reach, as values in one table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["BARS", "Bar", "Judged", "judge"]

Sets = Mapping[str, Mapping[str, Mapping[str, Any]]]
SETS = ("textures", "shapes", "photographs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A named figure drawn from the measured sets, and the least (`at_least`) or most that it may be."""

    name: str
    limit: float
    value: Callable[[Sets], float]
    at_least: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A bar and what was measured; `value` is None where that was not measured."""

    name: str
    value: float | None
    limit: float
    at_least: bool
    reached: bool | None

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON."""
        return dataclasses.asdict(self)


def figure(name: str, path: str, metric: str = "psnr_db") -> Callable[[Sets], float]:
    """A figure as it was measured."""
    return lambda sets: float(sets[name][path][metric])


def gap(name: str, above: str, below: str, metric: str = "psnr_db") -> Callable[[Sets], float]:
    """How much better one path is than another on the same set."""
    return lambda sets: float(sets[name][above][metric]) - float(sets[name][below][metric])


def worst(gaps: list[Callable[[Sets], float]]) -> Callable[[Sets], float]:
    """The largest of several gaps."""
    return lambda sets: max(value(sets) for value in gaps)


BARS = (
    Bar(name="VAE round trip, textures, dB", limit=29.0, value=figure("textures", "vae")),
    Bar(name="VAE round trip, shapes, dB", limit=26.5, value=figure("shapes", "vae")),
    Bar(name="VAE round trip, photographs, dB", limit=25.0, value=figure("photographs", "vae")),
    Bar(
        name="transformer under its own conditioning below the VAE, worst set, dB",
        limit=0.5,
        value=worst([gap(name, "vae", "own_conditioning") for name in SETS]),
        at_least=False,
    ),
    Bar(
        name="conditioning adapter below the VAE, worst set, dB",
        limit=1.5,
        value=worst([gap(name, "vae", "conditioning") for name in SETS]),
        at_least=False,
    ),
    Bar(
        name="latent adapter below the VAE, worst set, dB",
        limit=1.5,
        value=worst([gap(name, "vae", "latent") for name in SETS]),
        at_least=False,
    ),
    Bar(name="adapter SSIM, textures", limit=0.79, value=figure("textures", "conditioning", "ssim")),
    Bar(name="adapter SSIM, photographs", limit=0.68, value=figure("photographs", "conditioning", "ssim")),
    Bar(name="adapter mask IoU, shapes", limit=0.75, value=figure("shapes", "conditioning", "mask_iou")),
    Bar(name="adapter box IoU, shapes", limit=0.70, value=figure("shapes", "conditioning", "box_iou")),
    Bar(
        name="adapter over the best static frame, moving textures, dB",
        limit=2.5,
        value=gap("textures", "conditioning", "static_frame", "moving_psnr_db"),
    ),
    Bar(
        name="adapter over the mean colour, photographs, dB",
        limit=7.0,
        value=gap("photographs", "conditioning", "mean_colour"),
    ),
    Bar(
        name="another clip's features, textures, dB",
        limit=13.0,
        value=figure("textures", "other_clip"),
        at_least=False,
    ),
)


def judge(sets: Sets) -> list[Judged]:
    """Hold the measured sets against every bar."""
    return [judge_one(bar, sets) for bar in BARS]


def judge_one(bar: Bar, sets: Sets) -> Judged:
    """Hold the measured sets against one bar; a path that was not measured leaves it undecided."""
    try:
        value = bar.value(sets)
    except KeyError:
        return Judged(name=bar.name, value=None, limit=bar.limit, at_least=bar.at_least, reached=None)
    reached = value >= bar.limit if bar.at_least else value <= bar.limit
    return Judged(name=bar.name, value=value, limit=bar.limit, at_least=bar.at_least, reached=reached)
