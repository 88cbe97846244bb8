"""What training steps draw: clips with their latents and what the encoders saw of them, computed live or kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from foresight.models.stack import Stack
from foresight.training.clips import to_video

__all__ = ["ExampleSource", "Examples", "KeptExamples", "LatentPool", "LiveExamples", "Pool"]

CHUNK = 128


class Pool(Protocol):
    """Clips in memory, uint8 [N, T, H, W, 3]."""

    frames: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """A batch: video [B, 3, T, H, W], tokens `vlm` [B, N, C] and `dino` [B, M, D], model-space `latents`."""

    video: Tensor
    vlm: Tensor
    dino: Tensor
    latents: Tensor


class ExampleSource(Protocol):
    """Where an adapter's training draws its batches."""

    def draw(self, batch: int) -> Examples:
        """Draw a batch, without leaving the device; capturable in a CUDA graph."""


def pick(frames: Tensor, batch: int) -> Tensor:
    """Random indices [batch] into the first dimension of `frames`."""
    return torch.randint(frames.shape[0], (batch,), device=frames.device)


@torch.no_grad()
def look(stack: Stack, video: Tensor) -> Examples:
    """Run both encoders and the video autoencoder's encoder on video [B, 3, T, H, W] in [-1, 1]."""
    return Examples(
        video=video,
        vlm=stack.vlm(stack.vlm.preprocess(video)),
        dino=stack.dino(stack.dino.preprocess(video)),
        latents=stack.latent_extractor(video),
    )


class LiveExamples:
    """Runs the frozen encoders on every batch."""

    def __init__(self, stack: Stack, pool: Pool) -> None:
        self.stack = stack
        self.pool = pool

    def draw(self, batch: int) -> Examples:
        """Draw clips and look at them."""
        frames = self.pool.frames
        return look(self.stack, to_video(frames.index_select(0, pick(frames, batch))))


class KeptExamples:
    """Looks at every clip once and keeps the tokens in float16: several times faster, for memory."""

    def __init__(self, stack: Stack, pool: Pool) -> None:
        self.frames = pool.frames
        count, device = self.frames.shape[0], self.frames.device
        kept: list[Tensor] = []
        for start in range(0, count, CHUNK):
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                seen = look(stack, to_video(self.frames[start : start + CHUNK]))
            parts = (seen.vlm, seen.dino, seen.latents)
            if not kept:
                kept = [part.new_empty((count, *part.shape[1:]), dtype=torch.float16) for part in parts]
            for whole, part in zip(kept, parts, strict=True):
                whole[start : start + CHUNK] = part
        self.vlm, self.dino, self.latents = kept

    def draw(self, batch: int) -> Examples:
        """Draw clips and what is known of them."""
        index = pick(self.frames, batch)
        return Examples(
            video=to_video(self.frames.index_select(0, index)),
            vlm=self.vlm.index_select(0, index).float(),
            dino=self.dino.index_select(0, index).float(),
            latents=self.latents.index_select(0, index).float(),
        )


class LatentPool:
    """The latents of every clip of a pool and of its mirror image, kept in float16."""

    def __init__(self, encode: Callable[[Tensor], Tensor], pool: Pool) -> None:
        parts: list[Tensor] = []
        device = pool.frames.device
        for frames in torch.split(pool.frames, CHUNK):
            video = to_video(frames)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                parts += [encode(video).half(), encode(video.flip(4)).half()]
        self.latents = torch.cat(parts)

    def draw(self, batch: int) -> Tensor:
        """Draw model-space latents [B, C, T', H', W']; capturable in a CUDA graph."""
        return self.latents.index_select(0, pick(self.latents, batch)).float()
