"""The controls: each is the best of its kind, and the wrong clip is never the right one."""

from __future__ import annotations

import pytest
import torch

from foresight.evaluation import mean_colour, other_clip, psnr, static_frame

torch.set_num_threads(1)


@pytest.fixture
def video() -> torch.Tensor:
    return torch.rand(3, 3, 4, 12, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_mean_colour_is_one_colour_a_clip_and_the_best_one(video: torch.Tensor) -> None:
    control = mean_colour(video)
    assert control.shape == video.shape
    torch.testing.assert_close(control[..., 0, 0], control[..., 5, 9])
    assert (psnr(control, video) > psnr(control + 0.05, video)).all()
    assert not torch.allclose(control[0], control[1])


def test_static_frame_is_one_image_a_clip_and_the_best_one(video: torch.Tensor) -> None:
    control = static_frame(video)
    assert torch.equal(control[:, :, 0], control[:, :, 3])
    best = psnr(control, video)
    for frame in range(4):
        assert (best > psnr(video[:, :, frame : frame + 1].expand_as(video), video)).all()
    assert (best > psnr(mean_colour(video), video)).all()


def test_static_frame_is_perfect_on_a_still(video: torch.Tensor) -> None:
    still = video[:, :, :1].expand_as(video)
    assert (psnr(static_frame(still), still) == 100).all()


def test_other_clip_moves_every_clip(video: torch.Tensor) -> None:
    control = other_clip(video)
    assert torch.equal(control[1], video[0])
    assert torch.equal(control[0], video[2])


def test_other_clip_needs_another_clip(video: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="at least two"):
        other_clip(video[:1])


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be \[B, 3, T, H, W\]"):
        static_frame(torch.zeros(3, 4, 8, 8))
