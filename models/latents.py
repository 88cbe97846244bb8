"""Videos to latents: the encoder of LTX-Video's autoencoder, and the space that its transformer works in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["LTXLatentExtractor", "denormalize_latents", "normalize_latents"]


def normalize_latents(latents: Tensor, vae: Any) -> Tensor:
    """Take latents `[B, 128, T, H, W]` of the autoencoder to model space, in float32.

    Model space is `(z - latents_mean) * scaling_factor / latents_std` (diffusers' `LTXPipeline`).
    """
    mean, std = _statistics(vae)
    scale: Tensor = vae.config.scaling_factor / std
    return (latents.float() - mean) * scale


def denormalize_latents(latents: Tensor, vae: Any) -> Tensor:
    """Take model-space latents `[B, 128, T, H, W]` back to the autoencoder's own space, in float32."""
    mean, std = _statistics(vae)
    scale: Tensor = std / vae.config.scaling_factor
    return latents.float() * scale + mean


def _statistics(vae: Any) -> tuple[Tensor, Tensor]:
    return vae.latents_mean.float().view(1, -1, 1, 1, 1), vae.latents_std.float().view(1, -1, 1, 1, 1)


class LTXLatentExtractor(nn.Module):
    """Encodes videos with an `AutoencoderKLLTXVideo` to latents in model space."""

    vae: Any

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, video: Tensor) -> Tensor:
        """Encode a video `[B, 3, 8k+1, H, W]` in [-1, 1] to float32 latents `[B, 128, k+1, H/32, W/32]`.

        Takes the mode of the posterior, so that a clip has one encoding.
        Raises ValueError for sizes that the autoencoder would floor silently.
        """
        frames, height, width = video.shape[-3:]
        if frames % 8 != 1 or height % 32 or width % 32:
            video_size = f"video of {frames} frames, {height}x{width}"
            raise ValueError(f"{video_size}: must have 8k+1 frames and sides in multiples of 32")
        # The encoder itself: `encode` would switch to tiles by a flag that belongs to decoding.
        moments = self.vae.encoder(video.to(self.vae.encoder.conv_in.conv.weight.dtype))
        mode = torch.chunk(moments, 2, dim=1)[0]
        return normalize_latents(mode, self.vae)
