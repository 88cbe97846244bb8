"""Writes examples/clip.mp4, three seconds of a procedural scene whose seed no training uses, or a longer one."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
import tyro

from foresight.media import ClipWriter, FrameBatch
from foresight.training.clips import sample_frames
from foresight.training.shapes import signed_distance
from foresight.training.textures import dead_leaves, pixel_grid

SIZE = (256, 384)
FPS = Fraction(24)
SEED = 1_000_042
CLIP = Path(__file__).with_name("clip.mp4")
SHAPES = (  # kind, colour, radius, centre and swing in shares of the frame
    (0, (0.95, 0.75, 0.15), 0.17, (0.45, 0.30), (0.12, 0.16)),
    (5, (0.85, 0.15, 0.25), 0.20, (0.55, 0.68), (-0.14, 0.12)),
)


def scene(num_frames: int) -> torch.Tensor:
    """Frames [T, 3, H, W] in [0, 1]: a slow camera over a textured ground, two shapes that swing and turn."""
    generator = torch.Generator().manual_seed(SEED)
    canvas = dead_leaves(1, (SIZE[0] * 5 // 4, SIZE[1] * 5 // 4), generator)
    frames = sample_frames(
        canvas, torch.tensor([[0.10, 0.25, 0.08, 0.1]]) * 72 / num_frames, SIZE, num_frames
    )[0]
    row, column = pixel_grid(SIZE, torch.device("cpu"))
    phase = torch.linspace(0, 2 * math.pi * num_frames / 72, num_frames)[:, None, None]
    for kind, colour, radius, (top, left), (rise, sway) in SHAPES:
        y = row - (top + rise * phase.sin()) * SIZE[0]
        x = column - (left + sway * phase.cos()) * SIZE[1]
        size = torch.tensor(radius * SIZE[0]).reshape(1, 1, 1, 1)
        distance = signed_distance(x[None], y[None], phase[None], size, torch.tensor([kind]))[0]
        alpha = (0.5 - distance).clamp(0, 1)[:, None]
        frames = torch.lerp(frames, torch.tensor(colour)[:, None, None], alpha)
    return frames


def main(output: Path = CLIP, seconds: int = 3) -> None:
    """Write the clip.

    Args:
        output: where it goes; replaced if it is there.
        seconds: how long it is.
    """
    frames = scene(seconds * 24).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    with ClipWriter(output, width=SIZE[1], height=SIZE[0], fps=FPS, overwrite=True) as writer:
        times = np.arange(len(frames)) / float(FPS)
        writer.write(FrameBatch(frames=frames, timestamps=times, fps=FPS))


if __name__ == "__main__":
    tyro.cli(main)
