"""Clips that the tests make for themselves, and a stack that does nothing, so that frames can be followed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from foresight.media import ClipWriter, FrameBatch
from foresight.models.presets import STACKS

MakeClip = Callable[..., Path]


@pytest.fixture(autouse=True)
def _offline_and_single_threaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def moving_frames(count: int, height: int, width: int) -> np.ndarray:
    """A colour ramp that moves by two pixels a frame: [count, height, width, 3] uint8."""
    rows, columns = np.mgrid[:height, :width]
    shifts = 2 * np.arange(count)[:, None, None]
    red, green = (columns + shifts) * 255 // (width + 2 * count), rows * 255 // height + 0 * shifts
    return np.stack([red, green, 255 - red], axis=-1).astype(np.uint8)


@pytest.fixture
def make_clip(tmp_path: Path) -> MakeClip:
    """Return a function that writes a clip of moving colours: (name, frames, height, width, fps)."""

    def make(
        name: str = "clip.mp4", frames: int = 10, height: int = 48, width: int = 64, fps: int = 24
    ) -> Path:
        path = tmp_path / name
        with ClipWriter(path, width=width, height=height, fps=Fraction(fps)) as writer:
            times = np.arange(frames) / fps
            pixels = moving_frames(frames, height, width)
            writer.write(FrameBatch(frames=pixels, timestamps=times, fps=Fraction(fps)))
        return path

    return make


class Identity(nn.Module):
    """Stands for an encoder, an adapter and a decoder at once: everything is the video itself."""

    token_grid = (1, 1, 1)
    config = SimpleNamespace(mode="latent", latent_channels=3)
    dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[int] = []

    def preprocess(self, video: Tensor) -> Tensor:
        return video

    def forward(self, states: Tensor, *_: Any, **__: Any) -> Tensor:
        return states

    def decode(self, latents: Tensor, seed: int = 0, first_index: int = 0) -> Tensor:  # noqa: ARG002
        self.seen.append(first_index)
        return latents


@pytest.fixture
def identity() -> Identity:
    return Identity()


@pytest.fixture
def identity_stack(identity: Identity) -> Any:
    """A stack of nano's configuration whose models return what they are given."""
    return SimpleNamespace(config=STACKS["nano"], vlm=identity, dino=identity, decoder=identity)
