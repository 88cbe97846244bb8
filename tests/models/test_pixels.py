from __future__ import annotations

import pytest
import torch

from foresight.models.pixels import PixelPreprocessor, select_frames


@pytest.mark.parametrize("frames", [(0,), (0, 4, 8), (1, 2, 3), (5, 2, 3), (7, 7)])
def test_selects_the_named_frames(frames: tuple[int, ...]) -> None:
    video = torch.arange(9.0).view(1, 1, 9, 1, 1).expand(2, 3, 9, 4, 4)
    picked = select_frames(video, frames)
    assert picked[1, 2, :, 0, 0].tolist() == list(frames)


def test_names_the_frame_that_a_short_video_lacks() -> None:
    with pytest.raises(ValueError, match="video of 5 frames: the encoder looks at frame 8"):
        select_frames(torch.zeros(1, 3, 5, 2, 2), (0, 4, 8))


def test_normalises_white_and_black() -> None:
    pixels = PixelPreprocessor((4, 6), (0, 1), (0.5, 0.4, 0.3), (0.1, 0.2, 0.5))
    video = torch.cat([torch.ones(1, 3, 1, 8, 12), -torch.ones(1, 3, 1, 8, 12)], dim=2)
    frames = pixels(video)
    assert frames.shape == (1, 2, 3, 4, 6)
    torch.testing.assert_close(frames[0, 0, :, 0, 0], torch.tensor([5.0, 3.0, 1.4]))
    torch.testing.assert_close(frames[0, 1, :, 3, 5], torch.tensor([-5.0, -2.0, -0.6]))


def test_resizing_never_leaves_the_range_of_pixels() -> None:
    pixels = PixelPreprocessor((16, 16), (0,), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    video = torch.rand(1, 3, 1, 9, 9).round() * 2 - 1
    frames = pixels(video)
    assert frames.min() >= 0.0
    assert frames.max() <= 1.0


def test_statistics_made_in_inference_mode_serve_training() -> None:
    pixels = PixelPreprocessor((4, 4), (0,), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    with torch.inference_mode():
        pixels(torch.zeros(1, 3, 1, 4, 4))
    video = torch.zeros(1, 3, 1, 4, 4, requires_grad=True)
    pixels(video).square().sum().backward()
    assert video.grad is not None


def test_refuses_no_frames() -> None:
    with pytest.raises(ValueError, match="frames"):
        PixelPreprocessor((4, 4), (), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
