"""Shapes: those of the stacks, those that a user names."""

from __future__ import annotations

import math

import pytest

from foresight.adapters import EngineBucket
from foresight.export.errors import ExportError
from foresight.export.grids import find_grid, parse_bucket, stack_bucket
from foresight.models.presets import STACKS


def test_the_stacks_shapes() -> None:
    assert stack_bucket(STACKS["full"]) == EngineBucket(batch=1, vlm_tokens=4 * 16 * 24, dino_tokens=256)
    assert stack_bucket(STACKS["nano"]) == EngineBucket(batch=1, vlm_tokens=5 * 4 * 6, dino_tokens=3 * 256)


def test_a_named_shape() -> None:
    assert parse_bucket("2x384x256") == EngineBucket(batch=2, vlm_tokens=384, dino_tokens=256)


@pytest.mark.parametrize("text", ["", "1x2", "0x1x1", "1x1x0", "ax1x1", "1x1x1x1", "-1x1x1", "1x999999x1"])
def test_a_shape_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ExportError, match="bucket"):
        parse_bucket(text)


@pytest.mark.parametrize("tokens", [1, 24, 120, 256, 768, 1536, 4096])
def test_a_grid_has_its_tokens(tokens: int) -> None:
    grid = find_grid(tokens, (32, 64, 64))
    assert math.prod(grid) == tokens
    assert all(size <= most for size, most in zip(grid, (32, 64, 64), strict=True))


def test_a_number_without_a_grid_gets_the_next_smaller() -> None:
    assert math.prod(find_grid(67, (32, 64, 64))) == 66
