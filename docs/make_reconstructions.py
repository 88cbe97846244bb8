"""Draws docs/reconstructions.png: photographs, what the autoencoder can keep of them, and their reconstructions."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from foresight.evaluation import load_photographs, pan_and_zoom
from foresight.training.config import EvaluationConfig
from foresight.training.evaluate import Paths

ROWS = ("input", "vae", "conditioning")
FRAME = 4


def picture(video: Tensor) -> Tensor:
    """One frame of every clip [B, 3, T, H, W], side by side: uint8 [H, B * W, 3]."""
    frames = video[:, :, FRAME].add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return torch.cat(list(frames.permute(0, 2, 3, 1)), 1)


def main() -> None:
    """Write the figure beside this file."""
    path = Path(__file__).with_name("reconstructions.png")
    paths = Paths(EvaluationConfig(out=path))
    video = pan_and_zoom(load_photographs(), size=paths.stack.config.size).to(paths.device)
    answers = {"input": video, **paths.reconstruct(video)}
    rows = torch.cat([picture(answers[name]) for name in ROWS])
    Image.fromarray(rows.cpu().numpy()).save(path, optimize=True)


if __name__ == "__main__":
    main()
