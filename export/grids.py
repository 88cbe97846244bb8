"""Which shapes an engine is made for: the tokens that a stack's encoders hand over."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from foresight.adapters import EngineBucket, Grid
from foresight.export.errors import ExportError
from foresight.models.presets import StackConfig

__all__ = ["find_grid", "parse_bucket", "stack_bucket"]

_PATCH = 14
"""Pixels of a patch of Qwen2.5-VL's tower (two of which make a token, and two frames) and of DINOv2."""


def stack_bucket(stack: StackConfig, batch: int = 1) -> EngineBucket:
    """The tokens that the encoders of a stack make of one chunk."""
    vlm = math.prod(side // (2 * _PATCH) for side in stack.vlm_size)
    dino = math.prod(side // _PATCH for side in stack.dino_size)
    return EngineBucket(
        batch=batch,
        vlm_tokens=math.ceil(len(stack.vlm_frames) / 2) * vlm,
        dino_tokens=len(stack.dino_frames) * dino,
    )


def parse_bucket(text: str) -> EngineBucket:
    """A bucket from `BATCHxVLMxDINO`, for instance 1x1536x256; raises ExportError."""
    match = re.fullmatch(r"(\d{1,3})x(\d{1,5})x(\d{1,5})", text)
    if match is None:
        raise ExportError(f"bucket {text!r}: must be BATCHxVLM_TOKENSxDINO_TOKENS, for instance 1x1536x256")
    batch, vlm, dino = map(int, match.groups())
    try:
        return EngineBucket(batch=batch, vlm_tokens=vlm, dino_tokens=dino)
    except ValueError as error:
        raise ExportError(f"bucket {text!r}: {error}") from error


def find_grid(tokens: int, largest: Grid) -> Grid:
    """The most square grid of that many tokens within `largest`, or of the next smaller number that has one."""
    for count in range(tokens, 0, -1):
        grids = list(_grids(count, largest))
        if grids:
            return min(grids, key=lambda grid: (abs(grid[1] - grid[2]), grid[0]))
    raise ExportError(f"tokens {tokens}: must be at least 1")


def _grids(tokens: int, largest: Grid) -> Iterator[Grid]:
    for time in range(1, largest[0] + 1):
        for rows in range(1, largest[1] + 1):
            columns, rest = divmod(tokens, time * rows)
            if rest == 0 and 1 <= columns <= largest[2]:
                yield time, rows, columns
