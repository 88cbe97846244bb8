"""Clips from photographs: a window pans and zooms over a still image that no model was trained on.

Camera motion over a flat picture has no parallax, no moving objects and no change of light.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["PHOTOGRAPHS", "load_photographs", "pan_and_zoom"]

# Those colour photographs of everyday scenes that lie inside scikit-image's wheel; its others are fetched.
PHOTOGRAPHS = {
    "astronaut": "astronaut.png",
    "chelsea": "chelsea.png",
    "coffee": "coffee.png",
    "rocket": "rocket.jpg",
}

Window = tuple[float, float, float, float]


def load_photographs(names: Sequence[str] = tuple(PHOTOGRAPHS)) -> list[NDArray[np.uint8]]:
    """Photographs of the installed scikit-image package, uint8 [H, W, 3] each, read from its own files.

    Never downloads. Raises ValueError for an unknown name, and where scikit-image or one of its files is
    missing.
    """
    for name in names:
        if name not in PHOTOGRAPHS:
            raise ValueError(f"photograph {name!r} is unknown: must be one of {', '.join(PHOTOGRAPHS)}")
    try:
        import skimage
        from skimage.io import imread
    except ModuleNotFoundError as error:
        raise ValueError(
            f"photographs come from scikit-image, a development dependency, and {error.name} is not installed"
        ) from error
    folder = Path(skimage.__file__).parent / "data"
    # Not skimage.data.astronaut() and so on: those would download what they do not find.
    images = []
    for name in names:
        file = folder / PHOTOGRAPHS[name]
        if not file.is_file():
            raise ValueError(f"photograph {name!r} is not in the installed scikit-image")
        images.append(np.asarray(imread(file), dtype=np.uint8))
    return images


def pan_and_zoom(
    images: Sequence[NDArray[np.uint8]],
    *,
    size: tuple[int, int] = (128, 192),
    num_frames: int = 9,
    clips_per_image: int = 1,
    seed: int = 0,
) -> Tensor:
    """Clips of a camera moving over each image, float32 [images * clips_per_image, 3, T, H, W] in [-1, 1].

    Images are uint8 [H, W, 3]; `size` is (height, width) in pixels. A window of the size's aspect covers 50
    to 70 % of what fits, travels 10 to 20 % of its own side at constant speed and grows or shrinks by up to
    15 %. Frames are resampled at sub-pixel positions by Pillow's bicubic filter, widened when it shrinks, so
    that nothing aliases. Clip i of image k depends on `seed`, k and i alone. Raises ValueError for other
    images, sizes or counts.
    """
    height, width = size
    if min(height, width, num_frames, clips_per_image) < 1:
        raise ValueError(
            f"size {height}x{width}, {num_frames} frames, {clips_per_image} clips: all must be >= 1"
        )
    if not images:
        raise ValueError("no images: give at least one")
    clips = []
    for number, image in enumerate(images):
        _check_image(number, image)
        for clip in range(clips_per_image):
            rng = np.random.default_rng((seed, number, clip))
            windows = _windows(rng, image.shape[:2], size, num_frames)
            clips.append(_resample(image, windows, size))
    video = torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3).float()
    return (video / 127.5 - 1).contiguous()


def _check_image(number: int, image: NDArray[np.uint8]) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < 2:
        raise ValueError(f"image {number} is {image.dtype} {image.shape}: must be uint8 [H, W, 3]")


def _windows(
    rng: np.random.Generator, image_size: tuple[int, ...], size: tuple[int, int], num_frames: int
) -> list[Window]:
    """One window (x0, y0, x1, y1) a frame, in source pixels, all of them inside the image."""
    image_height, image_width = image_size
    height, width = size
    unit = min(image_height / height, image_width / width)
    first = unit * rng.uniform(0.5, 0.7)
    zooms = np.geomspace(first, first * math.exp(rng.uniform(-0.14, 0.14)), num_frames)
    angle, distance = rng.uniform(0, 2 * math.pi), rng.uniform(0.10, 0.20) * first
    travel = np.linspace(-0.5, 0.5, num_frames) * distance
    columns = _spans(rng, image_width, zooms * width, travel * width * math.cos(angle))
    rows = _spans(rng, image_height, zooms * height, travel * height * math.sin(angle))
    return [(x0, y0, x1, y1) for (x0, x1), (y0, y1) in zip(columns, rows, strict=True)]


def _spans(
    rng: np.random.Generator, limit: int, lengths: NDArray[np.float64], offsets: NDArray[np.float64]
) -> list[tuple[float, float]]:
    """Intervals of these lengths, centred on a random place plus the offsets, all within [0, limit]."""
    # 0.7 (window) * 1.15 (zoom) + 0.2 * 0.7 (travel) < 1: a place always exists.
    low = float((lengths / 2 - offsets).max())
    high = float((limit - lengths / 2 - offsets).min())
    centres = rng.uniform(low, high) + offsets
    starts = np.maximum(centres - lengths / 2, 0)
    ends = np.minimum(centres + lengths / 2, limit)
    return [(float(start), float(end)) for start, end in zip(starts, ends, strict=True)]


def _resample(
    image: NDArray[np.uint8], windows: Sequence[Window], size: tuple[int, int]
) -> NDArray[np.uint8]:
    """Frames [T, H, W, 3] of the windows."""
    from PIL import Image

    picture = Image.fromarray(image)
    frames = [picture.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=window) for window in windows]
    return np.stack([np.asarray(frame) for frame in frames])
