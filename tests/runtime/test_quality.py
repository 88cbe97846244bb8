"""The running measure agrees with the measure of the whole clip."""

from __future__ import annotations

import pytest
import torch

from foresight.evaluation.similarity import psnr, ssim
from foresight.runtime.quality import QualityMeter


def clip(height: int = 40, width: int = 56) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    coarse = torch.rand(1, 3, 5, 6, 8) * 2 - 1
    target = torch.nn.functional.interpolate(coarse, (20, height, width), mode="trilinear")
    return target + 0.3 * torch.randn_like(target), target


def test_chunk_by_chunk_is_the_same_as_the_whole_clip() -> None:
    prediction, target = clip()
    meter = QualityMeter()
    for start, stop in [(0, 9), (9, 17), (17, 20)]:
        meter.add(prediction[:, :, start:stop], target[:, :, start:stop])
    assert meter.psnr_db == pytest.approx(psnr(prediction, target).item(), abs=1e-3)
    assert meter.ssim == pytest.approx(ssim(prediction, target).item(), abs=1e-4)


def test_identical_clips() -> None:
    _, target = clip()
    meter = QualityMeter()
    meter.add(target, target)
    assert meter.psnr_db == 100.0
    assert meter.ssim == pytest.approx(1.0)


def test_pictures_too_small_for_the_window_have_no_ssim() -> None:
    prediction, target = clip(8, 56)
    meter = QualityMeter()
    meter.add(prediction, target)
    assert meter.ssim is None
    assert meter.psnr_db == pytest.approx(psnr(prediction, target).item(), abs=1e-3)


def test_nothing_measured_is_nothing_known() -> None:
    meter = QualityMeter()
    assert meter.psnr_db is None
    assert meter.ssim is None


def test_a_reconstruction_of_no_numbers_is_no_perfect_one() -> None:
    prediction, target = clip()
    prediction[0, 0, 3, 5, 5] = float("nan")
    meter = QualityMeter()
    meter.add(prediction, target)
    assert not meter.finite
    assert meter.psnr_db is None
    assert meter.ssim is None
