"""PSNR, SSIM, MS-SSIM and the latent measures on clips whose answer is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from foresight.evaluation import latent_cosine, latent_mse, ms_ssim, ms_ssim_scales, psnr, ssim

torch.set_num_threads(1)


def _clips(batch: int = 2, frames: int = 2, height: int = 48, width: int = 64) -> torch.Tensor:
    rows = torch.linspace(0, 9, height).sin()[:, None]
    columns = torch.linspace(0, 7, width).cos()[None, :]
    picture = 0.6 * rows * columns
    phases = torch.linspace(0.5, 1.0, batch * 3 * frames).view(batch, 3, frames, 1, 1)
    return picture * phases


def test_psnr_of_a_constant_offset_is_exact() -> None:
    target = _clips()
    offset = torch.tensor([0.2, 0.02]).view(2, 1, 1, 1, 1)
    torch.testing.assert_close(psnr(target + offset, target), torch.tensor([20.0, 40.0]), atol=1e-3, rtol=0)


def test_psnr_of_noise_is_that_of_its_variance() -> None:
    target = torch.zeros(1, 3, 4, 64, 64)
    noise = 0.1 * torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    assert psnr(noise, target).item() == pytest.approx(10 * math.log10(4 / 0.01), abs=0.1)


def test_psnr_pools_the_error_over_the_frames_of_a_clip() -> None:
    target = torch.zeros(1, 3, 2, 16, 16)
    prediction = target.clone()
    prediction[:, :, 0] = 0.2
    assert psnr(prediction, target).item() == pytest.approx(10 * math.log10(4 / 0.02), abs=1e-3)


def test_values_beyond_the_range_count_as_a_file_would_show_them() -> None:
    target = torch.ones(1, 3, 1, 16, 16)
    assert psnr(target * 7, target).item() == 100.0


@pytest.mark.parametrize("measure", [ssim, ms_ssim])
def test_identical_clips_are_fully_similar_and_noise_is_not(measure: Callable[..., torch.Tensor]) -> None:
    target = _clips()
    noise = torch.rand(target.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.testing.assert_close(measure(target, target), torch.ones(2), atol=1e-5, rtol=0)
    assert (measure(noise, target) < 0.3).all()
    slightly, much = measure(target + 0.05 * noise, target), measure(target + 0.4 * noise, target)
    assert (slightly > much).all()


def test_ssim_is_measured_on_a_range_from_zero() -> None:
    """A flat grey against a flat white, by SSIM's own formula with means 0.5 and 1."""
    grey, white = torch.zeros(1, 3, 1, 16, 16), torch.ones(1, 3, 1, 16, 16)
    expected = (2 * 0.5 * 1 + 0.01**2) / (0.5**2 + 1 + 0.01**2)
    assert ssim(grey, white).item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("height", "width", "scales"),
    [
        (176, 176, 5),
        (512, 768, 5),
        (175, 300, 4),
        (128, 192, 4),
        (99, 99, 4),
        (98, 99, 3),
        (44, 44, 3),
        (43, 90, 2),
        (12, 12, 2),
        (11, 90, 1),
    ],
)
def test_number_of_scales_by_size(height: int, width: int, scales: int) -> None:
    assert ms_ssim_scales(height, width) == scales


@pytest.mark.parametrize("side", [11, 12, 44, 99, 176])
def test_torchmetrics_accepts_the_smallest_size_of_each_number_of_scales(side: int) -> None:
    clip = _clips(1, 1, side, side)
    assert ms_ssim(clip, clip).item() == pytest.approx(1, abs=1e-5)


def test_tiny_frames_are_refused() -> None:
    clip = torch.zeros(1, 3, 1, 8, 64)
    with pytest.raises(ValueError, match="8x64 are too small"):
        ssim(clip, clip)


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        (torch.zeros(1, 3, 2, 16, 16), torch.zeros(1, 3, 3, 16, 16), "differ in shape"),
        (torch.zeros(3, 2, 16, 16), torch.zeros(3, 2, 16, 16), r"must be \[B, 3, T, H, W\]"),
        (torch.zeros(1, 3, 1, 16, 16, dtype=torch.uint8), torch.zeros(1, 3, 1, 16, 16), "uint8"),
    ],
)
def test_clips_that_do_not_fit_are_refused(
    prediction: torch.Tensor, target: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        psnr(prediction, target)


def test_latents_by_hand() -> None:
    target = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1, 1).expand(2, 2, 1, 2, 3)
    turned = torch.tensor([0.0, 2.0]).view(1, 2, 1, 1, 1).expand_as(target)
    prediction = torch.stack((target[0] * 3, turned[1]))
    torch.testing.assert_close(latent_mse(prediction, target), torch.tensor([2.0, 2.5]))
    torch.testing.assert_close(latent_cosine(prediction, target), torch.tensor([1.0, 0.0]))


def test_cosine_of_tokens_runs_over_their_last_axis() -> None:
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    torch.testing.assert_close(latent_cosine(tokens, tokens.flip(-1), dim=-1), torch.tensor([0.0]))
    torch.testing.assert_close(latent_cosine(tokens, -tokens, dim=-1), torch.tensor([-1.0]))


def test_latents_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="of one shape"):
        latent_mse(torch.zeros(1, 4), torch.zeros(2, 4))
