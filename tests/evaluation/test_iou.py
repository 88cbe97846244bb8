"""IoU by hand, and shapes read back from good, soft, misplaced and wrong reconstructions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from foresight.evaluation import box_iou, mask_iou, masks_to_boxes, mean_colour, other_clip, segment_by_colour

torch.set_num_threads(1)

Discs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _square(x: int, y: int, side: int) -> torch.Tensor:
    mask = torch.zeros(12, 16, dtype=torch.bool)
    mask[y : y + side, x : x + side] = True
    return mask


def test_iou_of_known_masks_and_their_boxes() -> None:
    first, second = _square(1, 2, 4), _square(3, 2, 4)
    assert masks_to_boxes(first).tolist() == [1, 2, 5, 6]
    assert mask_iou(first, second).item() == pytest.approx(8 / 24)
    assert box_iou(masks_to_boxes(first), masks_to_boxes(second)).item() == pytest.approx(8 / 24)
    assert mask_iou(first, _square(8, 7, 4)).item() == 0
    assert box_iou(masks_to_boxes(first), masks_to_boxes(_square(8, 7, 4))).item() == 0


def test_empty_masks_agree_with_each_other_only() -> None:
    empty, square = torch.zeros(12, 16, dtype=torch.bool), _square(0, 0, 3)
    assert masks_to_boxes(empty).tolist() == [0, 0, 0, 0]
    assert mask_iou(empty, empty).item() == 1
    assert mask_iou(empty, square).item() == 0
    assert box_iou(masks_to_boxes(empty), masks_to_boxes(empty)).item() == 1
    assert box_iou(masks_to_boxes(empty), masks_to_boxes(square)).item() == 0


def test_boxes_keep_leading_axes_and_reach_the_border() -> None:
    masks = torch.stack((_square(12, 8, 4), _square(5, 1, 2))).view(2, 1, 12, 16)
    assert masks_to_boxes(masks).tolist() == [[[12, 8, 16, 12]], [[5, 1, 7, 3]]]


def _blurred(video: torch.Tensor, side: int = 5) -> torch.Tensor:
    """Every frame under a box filter."""
    frames = video.transpose(1, 2).flatten(0, 1)
    smooth = F.avg_pool2d(F.pad(frames, (side // 2,) * 4, mode="replicate"), side, 1)
    return smooth.view(video.shape[0], video.shape[2], 3, *video.shape[3:]).transpose(1, 2)


def _iou(video: torch.Tensor, mask: torch.Tensor, target: torch.Tensor) -> tuple[float, float]:
    found = segment_by_colour(video, mask, target=target)
    boxes = box_iou(masks_to_boxes(found), masks_to_boxes(mask))
    return mask_iou(found, mask).min().item(), boxes.min().item()


def test_a_perfect_reconstruction_gives_the_exact_mask_back(target: torch.Tensor, mask: torch.Tensor) -> None:
    masks, boxes = _iou(target, mask, target)
    assert masks > 0.98
    assert boxes > 0.97


def test_a_soft_and_noisy_reconstruction_loses_little(target: torch.Tensor, mask: torch.Tensor) -> None:
    noise = 0.1 * torch.randn(target.shape, generator=torch.Generator().manual_seed(1))
    masks, boxes = _iou(_blurred(target) + noise, mask, target)
    assert 0.85 < masks < 1
    assert boxes > 0.8


def test_a_shape_in_the_wrong_place_is_found_where_it_is(
    target: torch.Tensor, mask: torch.Tensor, disc_clips: Callable[..., Discs]
) -> None:
    shifted, shifted_mask, _ = disc_clips(shift=9)
    found = segment_by_colour(shifted, mask, target=target)
    assert mask_iou(found, shifted_mask).min().item() > 0.9
    expected = mask_iou(shifted_mask, mask).max().item()
    assert mask_iou(found, mask).max().item() == pytest.approx(expected, abs=0.06)


def test_another_clip_a_flat_colour_and_noise_score_low(target: torch.Tensor, mask: torch.Tensor) -> None:
    noise = torch.rand(target.shape, generator=torch.Generator().manual_seed(2)) * 2 - 1
    for wrong in (other_clip(target), mean_colour(target), noise):
        found = segment_by_colour(wrong, mask, target=target)
        assert mask_iou(found, mask).max().item() < 0.15


def test_the_colour_is_read_from_the_input_or_given(
    target: torch.Tensor, mask: torch.Tensor, colour: torch.Tensor
) -> None:
    given = segment_by_colour(target, mask, target=target, colour=colour)
    read = segment_by_colour(target, mask, target=target)
    assert mask_iou(given, read).min().item() > 0.99
    elsewhere = segment_by_colour(target, mask, target=target, colour=-colour)
    assert not elsewhere.any()


def test_specks_do_not_stretch_the_box_but_thin_tips_count() -> None:
    target = torch.zeros(1, 3, 1, 64, 64)
    mask = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    mask[..., 24:40, 24:40] = True
    mask[..., 32, 40:44] = True
    target[:, 0][mask] = 0.9
    speckled = target.clone()
    speckled[:, 0, :, 20, 20] = 0.9
    found = segment_by_colour(speckled, mask, target=target)
    assert torch.equal(found, mask)


def test_frames_without_the_shape_stay_empty(target: torch.Tensor, mask: torch.Tensor) -> None:
    mask[:, 1] = False
    assert not segment_by_colour(target, mask, target=target)[:, 1].any()


def test_inputs_that_do_not_fit_are_refused(target: torch.Tensor, mask: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="must be bool"):
        segment_by_colour(target, mask.float(), target=target)
    with pytest.raises(ValueError, match="does not fit"):
        segment_by_colour(target, mask[:, :1], target=target)
    with pytest.raises(ValueError, match=r"must be \[B, 3\]"):
        segment_by_colour(target, mask, target=target, colour=torch.zeros(3))
    with pytest.raises(ValueError, match="differ in shape"):
        mask_iou(mask, mask[:, :1])
    with pytest.raises(ValueError, match="of one shape"):
        box_iou(torch.zeros(2, 4), torch.zeros(3, 4))
