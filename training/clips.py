"""Procedural clips: moving textures, half of them with moving shapes whose masks are known exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from foresight.training.shapes import MAX_SHAPES, Shapes, draw_shapes
from foresight.training.textures import TEXTURES, uniform

__all__ = ["ATTRIBUTES", "ClipPool", "Clips", "make_clips"]

CANVAS_SCALE = 1.25
ATTRIBUTES = 4 + MAX_SHAPES + 1 + len(TEXTURES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clips:
    """A batch of clips: `frames` uint8 [B, T, H, W, 3], `shapes`, and `attributes` float32 [B, ATTRIBUTES].

    Attributes are the camera's pan (rows, columns), zoom and turn, each scaled to about [-1, 1], then the number
    of shapes and the kind of texture as one-hot vectors.
    """

    frames: Tensor
    shapes: Shapes
    attributes: Tensor

    @property
    def video(self) -> Tensor:
        """The frames as float32 [B, 3, T, H, W] in [-1, 1]."""
        return to_video(self.frames)


def to_video(frames: Tensor) -> Tensor:
    """Turn uint8 [B, T, H, W, 3] into float32 [B, 3, T, H, W] in [-1, 1]."""
    return frames.permute(0, 4, 1, 2, 3).float().div(127.5).sub(1.0)


def make_clips(
    batch: int,
    generator: torch.Generator,
    *,
    size: tuple[int, int] = (128, 192),
    num_frames: int = 9,
    shape_share: float = 0.5,
) -> Clips:
    """Make `batch` clips on the generator's device, a share of them with 1 to 3 shapes."""
    canvas_size = (round(size[0] * CANVAS_SCALE), round(size[1] * CANVAS_SCALE))
    kinds = torch.multinomial(
        torch.tensor([share for share, _ in TEXTURES.values()], device=generator.device),
        batch,
        replacement=True,
        generator=generator,
    ).sort()[0]
    counts = [int((kinds == kind).sum()) for kind in range(len(TEXTURES))]
    textures = [
        draw(count, canvas_size, generator)
        for count, (_, draw) in zip(counts, TEXTURES.values(), strict=True)
        if count
    ]
    canvas = photometric(torch.cat(textures), generator)
    motion = camera_motion(batch, generator)
    frames = sample_frames(canvas, motion, size, num_frames)
    with_shapes = torch.rand((batch,), generator=generator, device=generator.device) < shape_share
    num_shapes = torch.randint(1, MAX_SHAPES + 1, (batch,), generator=generator, device=generator.device)
    num_shapes = num_shapes * with_shapes
    frames, shapes = draw_shapes(frames, num_shapes, generator)
    attributes = torch.cat(
        (
            motion,
            functional.one_hot(num_shapes, MAX_SHAPES + 1).float(),
            functional.one_hot(kinds, len(TEXTURES)).float(),
        ),
        1,
    )
    pixels = frames.mul(255).round().to(torch.uint8).permute(0, 1, 3, 4, 2).contiguous()
    return Clips(frames=pixels, shapes=shapes, attributes=attributes)


def photometric(canvas: Tensor, generator: torch.Generator) -> Tensor:
    """Vary exposure, contrast and focus of [B, 3, H, W] in [0, 1], as cameras do."""
    batch = canvas.shape[0]
    gamma = uniform((batch, 1, 1, 1), -0.5, 0.5, generator).exp()
    canvas = canvas.clamp(min=1e-4).pow(gamma)
    blurred = functional.avg_pool2d(functional.pad(canvas, (2, 2, 2, 2), mode="replicate"), 5, 1)
    focus = uniform((batch, 1, 1, 1), -1.0, 1.0, generator).clamp(min=0)
    return torch.lerp(canvas, blurred, focus)


def camera_motion(batch: int, generator: torch.Generator) -> Tensor:
    """Draw pan (rows, columns), zoom and turn per clip, [batch, 4] in [-1, 1]; a fifth of the clips stand still."""
    motion = uniform((batch, 4), -1.0, 1.0, generator)
    moving = torch.rand((batch, 1), generator=generator, device=generator.device) > 0.2
    return motion * moving


def sample_frames(canvas: Tensor, motion: Tensor, size: tuple[int, int], num_frames: int) -> Tensor:
    """Film the canvas [B, 3, H', W'] with a moving camera and return [B, T, 3, H, W].

    At full motion the camera pans 2.5 pixels, zooms 1 % and turns 0.6 degrees a frame.
    """
    batch = canvas.shape[0]
    time = torch.arange(num_frames, device=canvas.device, dtype=torch.float32) - (num_frames - 1) / 2
    pan_rows, pan_columns, zoom, turn = (motion[:, index, None] * time for index in range(4))
    scale = (zoom * 0.01).exp() / CANVAS_SCALE
    angle = turn * math.radians(0.6)
    sine, cosine = angle.sin() * scale, angle.cos() * scale
    aspect = size[1] / size[0]
    shift_x = pan_columns * 2.5 * 2 / canvas.shape[3]
    shift_y = pan_rows * 2.5 * 2 / canvas.shape[2]
    theta = torch.stack(
        (
            torch.stack((cosine, -sine / aspect, shift_x), -1),
            torch.stack((sine * aspect, cosine, shift_y), -1),
        ),
        -2,
    )
    grid = functional.affine_grid(
        theta.reshape(batch * num_frames, 2, 3), [batch * num_frames, 3, *size], align_corners=False
    )
    frames = functional.grid_sample(
        canvas.repeat_interleave(num_frames, 0), grid, padding_mode="reflection", align_corners=False
    )
    return frames.reshape(batch, num_frames, 3, *size).clamp(0, 1)


class ClipPool:
    """Clips held in memory as uint8, from which training draws batches without leaving the device."""

    def __init__(
        self,
        num_clips: int,
        *,
        device: torch.device | str,
        seed: int,
        size: tuple[int, int] = (128, 192),
        num_frames: int = 9,
        chunk: int = 256,
    ) -> None:
        generator = torch.Generator(device).manual_seed(seed)

        def make(count: int) -> Clips:
            return make_clips(count, generator, size=size, num_frames=num_frames)

        first = make(min(chunk, num_clips))
        self.frames = first.frames.new_empty((num_clips, *first.frames.shape[1:]))
        self.attributes = first.attributes.new_empty((num_clips, ATTRIBUTES))
        for start in range(0, num_clips, chunk):
            clips = first if start == 0 else make(min(chunk, num_clips - start))
            self.frames[start : start + chunk] = clips.frames
            self.attributes[start : start + chunk] = clips.attributes

    def __len__(self) -> int:
        return self.frames.shape[0]

    def sample(self, batch: int) -> tuple[Tensor, Tensor]:
        """Draw `batch` clips: video float32 [B, 3, T, H, W] in [-1, 1] and attributes; capturable in a CUDA graph."""
        index = torch.randint(self.frames.shape[0], (batch,), device=self.frames.device)
        return to_video(self.frames.index_select(0, index)), self.attributes.index_select(0, index)
