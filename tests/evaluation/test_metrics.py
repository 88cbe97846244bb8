"""The accumulating interface: means over clips, what was not given, and a report that JSON can hold."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

from foresight.evaluation import ReconstructionMetrics, psnr, ssim

torch.set_num_threads(1)

Discs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def test_a_perfect_reconstruction_scores_perfectly(target: torch.Tensor, mask: torch.Tensor) -> None:
    metrics = ReconstructionMetrics(lpips=False)
    metrics.update(target, target, mask=mask, prediction_latents=target, target_latents=target)
    report = metrics.compute()
    assert (report.num_clips, report.num_frames, report.num_objects) == (2, 6, 2)
    assert report.psnr_db == 100
    assert report.ssim == pytest.approx(1, abs=1e-5)
    assert report.ms_ssim == pytest.approx(1, abs=1e-5)
    assert report.ms_ssim_scales == 3
    assert report.mask_iou is not None
    assert report.mask_iou > 0.98
    assert report.spatial_iou == min(report.mask_iou, report.box_iou or 0)
    assert report.latent_mse == 0
    assert report.latent_cosine == pytest.approx(1)


def test_every_clip_counts_the_same_however_it_is_batched(
    disc_clips: Callable[..., Discs],
) -> None:
    target, _, _ = disc_clips(batch=3)
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    prediction = target + noise * torch.tensor([0.05, 0.1, 0.3]).view(3, 1, 1, 1, 1)
    metrics = ReconstructionMetrics(lpips=False)
    metrics.update(prediction[:1], target[:1])
    metrics.update(prediction[1:], target[1:])
    report = metrics.compute()
    assert report.psnr_db == pytest.approx(psnr(prediction, target).mean().item(), abs=1e-4)
    assert report.ssim == pytest.approx(ssim(prediction, target).mean().item(), abs=1e-5)


def test_what_was_not_given_is_not_reported(target: torch.Tensor) -> None:
    metrics = ReconstructionMetrics(lpips=False)
    metrics.update(target, target)
    report = metrics.compute()
    assert report.mask_iou is report.box_iou is report.spatial_iou is report.latent_mse is None
    assert report.unavailable == {"lpips": "LPIPS was switched off"}


def test_several_objects_count_each_and_absent_ones_not_at_all(
    target: torch.Tensor, mask: torch.Tensor, colour: torch.Tensor
) -> None:
    masks = torch.stack((mask, torch.zeros_like(mask)), 1)
    colours = torch.stack((colour, colour), 1)
    metrics = ReconstructionMetrics(lpips=False)
    metrics.update(target, target, mask=masks, colour=colours)
    report = metrics.compute()
    assert report.num_objects == 2
    assert report.mask_iou is not None
    assert report.mask_iou > 0.98


def test_without_any_visible_object_there_is_no_iou(target: torch.Tensor, mask: torch.Tensor) -> None:
    metrics = ReconstructionMetrics(lpips=False)
    metrics.update(target, target, mask=torch.zeros_like(mask))
    assert metrics.compute().spatial_iou is None


def test_a_broken_model_is_not_averaged_away(target: torch.Tensor) -> None:
    broken = target.clone()
    broken[1] = torch.nan
    metrics = ReconstructionMetrics(lpips=False)
    metrics.update(broken, target)
    assert metrics.compute().psnr_db != metrics.compute().psnr_db


def test_the_report_is_json(target: torch.Tensor, mask: torch.Tensor) -> None:
    metrics = ReconstructionMetrics(lpips=False)
    metrics.update(target, target, mask=mask)
    values = json.loads(json.dumps(metrics.compute().to_dict(), allow_nan=False))
    assert values["psnr_db"] == 100
    assert values["spatial_iou"] == min(values["mask_iou"], values["box_iou"])


def test_half_precision_is_measured_in_full(target: torch.Tensor) -> None:
    metrics = ReconstructionMetrics(lpips=False)
    metrics.update(target.bfloat16(), target)
    assert 40 < metrics.compute().psnr_db < 100


def test_reset_forgets(target: torch.Tensor) -> None:
    metrics = ReconstructionMetrics(lpips=False)
    metrics.update(-target, target)
    metrics.reset()
    with pytest.raises(ValueError, match="never called"):
        metrics.compute()
    metrics.update(target, target)
    assert metrics.compute().psnr_db == 100


def test_misuse_is_refused_in_one_line(target: torch.Tensor, mask: torch.Tensor) -> None:
    metrics = ReconstructionMetrics(lpips=False)
    with pytest.raises(ValueError, match="both or neither"):
        metrics.update(target, target, prediction_latents=target)
    with pytest.raises(ValueError, match=r"must be \[B, T, H, W\] or"):
        metrics.update(target, target, mask=mask[0])
    with pytest.raises(ValueError, match="never called"):
        metrics.compute()
    metrics.update(target, target)
    small = target[..., :40, :40]
    with pytest.raises(ValueError, match="cannot be averaged"):
        metrics.update(small, small)
    assert metrics.compute().num_clips == 2
