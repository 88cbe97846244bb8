"""A picture keeps its shape on the way into the model's frame, and its place on the way back."""

from __future__ import annotations

import pytest
import torch

from foresight.runtime.framing import Letterbox, resize


@pytest.mark.parametrize(
    ("source", "fitted", "padding"),
    [
        ((128, 192), (128, 192), (0, 0, 0, 0)),
        ((360, 640), (108, 192), (0, 0, 10, 10)),
        ((640, 360), (128, 72), (60, 60, 0, 0)),
        ((1, 1), (128, 128), (32, 32, 0, 0)),
        ((4000, 7), (128, 2), (95, 95, 0, 0)),
        ((64, 96), (128, 192), (0, 0, 0, 0)),
    ],
)
def test_geometry(source: tuple[int, int], fitted: tuple[int, int], padding: tuple[int, ...]) -> None:
    letterbox = Letterbox(source, (128, 192))
    assert letterbox.fitted == fitted
    assert letterbox.padding == padding


def test_aspect_is_kept_within_a_pixel() -> None:
    for source in [(123, 457), (480, 854), (1080, 1920), (999, 1000), (300, 200)]:
        height, width = Letterbox(source, (512, 768)).fitted
        assert abs(height - width * source[0] / source[1]) <= 1.5
        assert height % 2 == width % 2 == 0
        assert height == 512 or width == 768


def test_the_border_repeats_the_edge_of_the_picture() -> None:
    frames = torch.zeros(2, 32, 128, 3, dtype=torch.uint8)
    frames[:, :16], frames[:, 16:] = 255, 100
    video = Letterbox((32, 128), (64, 128)).fit(frames)
    assert video.shape == (1, 3, 2, 64, 128)
    assert video.dtype == torch.float32
    torch.testing.assert_close(video[..., :16, :], torch.ones(1, 3, 2, 16, 128))
    torch.testing.assert_close(video[..., 48:, :], torch.full((1, 3, 2, 16, 128), 100 * 2 / 255 - 1))


def test_there_and_back_at_the_model_size_is_exact() -> None:
    frames = torch.randint(0, 256, (9, 64, 96, 3), dtype=torch.uint8)
    letterbox = Letterbox((64, 96), (64, 96))
    assert torch.equal(letterbox.restore(letterbox.fit(frames), (64, 96)), frames)


@pytest.mark.parametrize("source", [(90, 60), (31, 200), (256, 384)])
def test_there_and_back_at_another_size_keeps_the_picture_in_place(source: tuple[int, int]) -> None:
    rows = torch.linspace(0, 255, source[0])[:, None].expand(source)
    columns = torch.linspace(0, 255, source[1]).expand(source)
    frames = torch.stack([rows, columns, 255 - rows], -1).round().to(torch.uint8).expand(3, *source, 3)
    letterbox = Letterbox(source, (128, 192))
    back = letterbox.restore(letterbox.fit(frames), source)
    assert back.shape == frames.shape
    assert (back.int() - frames.int()).abs().float().mean() < 2


def test_restore_leaves_the_border_out_and_clamps() -> None:
    letterbox = Letterbox((64, 64), (64, 96))
    video = torch.full((1, 3, 1, 64, 96), -9.0)
    letterbox.crop(video)[:] = 9.0
    frames = letterbox.restore(video, (64, 64))
    assert frames.shape == (1, 64, 64, 3)
    assert bool((frames == 255).all())


def test_shrinking_is_antialiased() -> None:
    stripes = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    stripes[:, :, ::2] = 255
    small = resize(stripes, (16, 16))
    assert (small.int() - 128).abs().max() <= 16


def test_frames_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(8, 8\)"):
        Letterbox((16, 16), (32, 32)).fit(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))


@pytest.mark.parametrize(("source", "model"), [((0, 5), (32, 32)), ((5, 5), (1, 32))])
def test_impossible_sizes_are_refused(source: tuple[int, int], model: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="both sides must be at least"):
        Letterbox(source, model)
