"""Gaussian noise that belongs to a place in the clip, so that any cut into chunks draws the same."""

from __future__ import annotations

from hashlib import blake2b

import torch
from torch import Tensor

__all__ = ["latent_noise"]


def latent_noise(
    seed: int, first_index: int, shape: tuple[int, ...], *, purpose: str, device: torch.device
) -> Tensor:
    """Draw float32 noise `[B, C, T, H, W]` whose frame t depends on `first_index + t` and the seed alone.

    `first_index` is the absolute index of the first latent frame in the clip. Every frame of every clip of a
    batch has its own generator on the CPU, so that all devices and all chunkings get the same numbers.
    """
    batch, channels, frames, height, width = shape
    noise = torch.empty(batch, frames, channels, height, width)
    generator = torch.Generator("cpu")
    for clip in range(batch):
        for frame in range(frames):
            generator.manual_seed(_stable_seed(seed, first_index + frame, clip, purpose))
            torch.randn(channels, height, width, generator=generator, out=noise[clip, frame])
    noise = noise.transpose(1, 2).contiguous()
    if device.type == "cuda":
        # From pinned memory the copy waits for nothing that the device still has to do.
        return noise.pin_memory().to(device, non_blocking=True)
    return noise.to(device)


def _stable_seed(seed: int, index: int, clip: int, purpose: str) -> int:
    # Python's own hash differs from process to process.
    digest = blake2b(f"{seed}/{index}/{clip}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
