"""The losses order pictures as an eye would."""

import pytest
import torch
from torch.nn import functional

from foresight.training.losses import (
    gaussian_kl,
    opponent_colours,
    relative_error,
    structural_loss,
    video_loss,
)


@pytest.fixture
def video() -> torch.Tensor:
    torch.manual_seed(0)
    coarse = torch.rand(2, 3, 3, 8, 8) * 2 - 1
    return functional.interpolate(coarse, (3, 32, 32), mode="trilinear")


def test_a_perfect_reconstruction_costs_nothing(video: torch.Tensor) -> None:
    assert video_loss(video, video) == pytest.approx(0.0, abs=1e-5)


def test_structure_forgives_contrast_and_notices_blur(video: torch.Tensor) -> None:
    sharp = torch.sign(video)
    images = sharp.transpose(1, 2).flatten(0, 1)
    blurred = functional.avg_pool2d(images, 5, 1, 2).unflatten(0, (2, 3)).transpose(1, 2)
    faded = sharp * (1 - (sharp - blurred).square().mean().sqrt())
    assert structural_loss(faded, sharp) < structural_loss(blurred, sharp)


def test_structural_loss_is_one_minus_ssim(video: torch.Tensor) -> None:
    from torchmetrics.functional.image import structural_similarity_index_measure

    noisy = video + 0.1 * torch.randn_like(video)
    images = [clip.transpose(1, 2).flatten(0, 1) for clip in (noisy, video)]
    reference = structural_similarity_index_measure(
        *images, gaussian_kernel=False, kernel_size=7, data_range=2.0
    )
    assert 1 - structural_loss(noisy, video) == pytest.approx(float(reference), abs=0.02)


def test_grey_has_no_opponent_colours() -> None:
    grey = torch.rand(1, 1, 2, 4, 4).expand(1, 3, 2, 4, 4)
    torch.testing.assert_close(opponent_colours(grey), torch.zeros(1, 2, 2, 4, 4))


def test_losing_chroma_costs_more_than_the_same_error_in_tone(video: torch.Tensor) -> None:
    grey = video.mean(1, keepdim=True).expand_as(video)
    error = (video - grey).abs().mean()
    tone = video + error * torch.sign(torch.randn(2, 1, 3, 32, 32))
    assert video_loss(grey, video) - structural_loss(grey, video) * 0.1 > 0
    assert opponent_colours(tone - video).abs().mean() < opponent_colours(grey - video).abs().mean()


def test_kl_is_zero_for_the_prior_and_relative_error_one_for_the_mean() -> None:
    assert gaussian_kl(torch.zeros(3), torch.zeros(3)) == 0
    assert gaussian_kl(torch.ones(3), torch.zeros(3)) == pytest.approx(0.5)
    target = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert relative_error(target.mean().expand(1000), target) == pytest.approx(1.0, abs=0.01)
