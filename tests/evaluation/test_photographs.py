"""Photographs become clips that move smoothly, alike on every run, without aliasing."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from foresight.evaluation import PHOTOGRAPHS, load_photographs, pan_and_zoom, psnr, static_frame

torch.set_num_threads(1)


def _image(height: int = 300, width: int = 451) -> NDArray[np.uint8]:
    rows, columns = np.mgrid[:height, :width]
    picture = np.stack(
        (rows * 255 // height, columns * 255 // width, (rows // 20 + columns // 20) % 2 * 200), -1
    )
    return picture.astype(np.uint8)


def test_clips_have_the_shape_and_range_of_video() -> None:
    video = pan_and_zoom([_image(), _image(200, 180)], size=(64, 96), clips_per_image=2)
    assert video.shape == (4, 3, 9, 64, 96)
    assert video.dtype == torch.float32
    assert -1 <= video.min() < -0.5
    assert 0.5 < video.max() <= 1


def test_the_same_seed_gives_the_same_clips_and_another_does_not() -> None:
    images = [_image()]
    assert torch.equal(pan_and_zoom(images, seed=3), pan_and_zoom(images, seed=3))
    assert not torch.equal(pan_and_zoom(images, seed=3), pan_and_zoom(images, seed=4))


def test_more_clips_leave_the_first_ones_as_they_were() -> None:
    images = [_image(), _image(200, 300)]
    few, many = pan_and_zoom(images, size=(32, 48)), pan_and_zoom(images, size=(32, 48), clips_per_image=2)
    assert torch.equal(few, many[::2])
    assert not torch.equal(many[0], many[1])


@pytest.mark.parametrize("seed", range(4))
def test_every_clip_moves_in_every_frame(seed: int) -> None:
    video = pan_and_zoom([_image()], clips_per_image=3, seed=seed)
    steps = (video[:, :, 1:] - video[:, :, :-1]).abs().mean((1, 3, 4))
    assert (steps > 0.01).all()
    assert (psnr(static_frame(video), video) < 25).all()


def test_the_picture_is_shown_in_its_own_proportions() -> None:
    """A linear ramp stays linear: equal slopes in rows and columns mean that nothing was stretched."""
    rows, columns = np.mgrid[:240, :240]
    image = np.stack((rows, columns, np.zeros_like(rows)), -1).astype(np.uint8)
    frame = pan_and_zoom([image], size=(48, 96))[0, :, 0]
    down = (frame[0, -4] - frame[0, 3]).mean() / 41
    across = (frame[1, :, -4] - frame[1, :, 3]).mean() / 89
    assert down.item() == pytest.approx(across.item(), rel=0.05)


def test_fine_detail_is_averaged_not_aliased() -> None:
    rows, columns = np.mgrid[:1024, :1536]
    checks = ((rows + columns) % 2 * 255).astype(np.uint8)
    video = pan_and_zoom([np.stack((checks,) * 3, -1)], size=(64, 96))
    assert video[..., 4:-4, 4:-4].std().item() < 0.05


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8), np.uint8), "image 0"),
        (np.zeros((8, 8, 4), np.uint8), r"\(8, 8, 4\)"),
        (np.zeros((8, 8, 3), np.float32), "float32"),
    ],
)
def test_other_images_are_refused(image: NDArray[np.uint8], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pan_and_zoom([image])


def test_nothing_to_show_is_refused() -> None:
    with pytest.raises(ValueError, match="no images"):
        pan_and_zoom([])
    with pytest.raises(ValueError, match="0 frames"):
        pan_and_zoom([_image()], num_frames=0)


def test_photographs_come_from_the_installed_package() -> None:
    pytest.importorskip("skimage")
    images = load_photographs()
    assert len(images) == len(PHOTOGRAPHS) == 4
    for image in images:
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[2] == 3
        assert min(image.shape[:2]) >= 300
    assert load_photographs(["coffee"])[0].shape == (400, 600, 3)


def test_without_scikit_image_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ValueError, match=r"development dependency, and skimage.* is not installed") as error:
        load_photographs()
    assert "\n" not in str(error.value)


def test_an_unknown_photograph_is_refused() -> None:
    with pytest.raises(ValueError, match="'camera' is unknown"):
        load_photographs(["camera"])
