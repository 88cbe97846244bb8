"""Resampling against PyTorch's own interpolation."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import interpolate

from foresight.adapters.resample import resample_grid


def test_growing_grids_are_interpolated_linearly() -> None:
    tokens = torch.randn(2, 2 * 3 * 4, 5)
    volume = tokens.view(2, 2, 3, 4, 5).permute(0, 4, 1, 2, 3)
    expected = interpolate(volume, size=(3, 5, 9), mode="trilinear").permute(0, 2, 3, 4, 1)
    torch.testing.assert_close(resample_grid(tokens, (2, 3, 4), (3, 5, 9)), expected)


def test_shrinking_grids_are_antialiased() -> None:
    tokens = torch.randn(2, 16 * 15, 5)
    image = tokens.view(2, 16, 15, 5).permute(0, 3, 1, 2)
    expected = interpolate(image, size=(4, 6), mode="bilinear", antialias=True).permute(0, 2, 3, 1)
    torch.testing.assert_close(resample_grid(tokens, (1, 16, 15), (1, 4, 6))[:, 0], expected)


@pytest.mark.parametrize("output_grid", [(1, 2, 3), (4, 8, 8), (2, 4, 5)])
def test_a_constant_stays_constant_whatever_is_masked(output_grid: tuple[int, int, int]) -> None:
    tokens = torch.full((2, 40, 3), 7.0)
    keep = torch.arange(40) < torch.tensor([[40], [31]])
    output = resample_grid(tokens, (2, 4, 5), output_grid, keep)
    torch.testing.assert_close(output[0], torch.full_like(output[0], 7.0))
    reached = output[1] != 0
    torch.testing.assert_close(output[1][reached], torch.full_like(output[1][reached], 7.0))


def test_the_grid_must_have_all_tokens() -> None:
    with pytest.raises(ValueError, match=r"grid \(1, 2, 2\): has 4 tokens, not 5"):
        resample_grid(torch.randn(1, 5, 3), (1, 2, 2), (1, 1, 1))
