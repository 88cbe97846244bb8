"""Training of the video autoencoder: clips through encoder, sampling and decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from foresight.training.clips import ClipPool
from foresight.training.initialisation import centre_convolutions
from foresight.training.losses import gaussian_kl, video_loss

__all__ = ["AutoencoderTask", "DecoderTask", "initialise", "measure_latents"]

KL_WEIGHT = 1e-4
LOGVAR_START = -5.0
SQUARED_ERROR_WEIGHT = 40.0


class AutoencoderTask(nn.Module):
    """An `AutoencoderKLLTXVideo` and the loss that trains it on batches of a pool."""

    ADAMW = ("encoder.conv_in.conv", "encoder.conv_out.conv", "decoder.conv_in.conv", "decoder.conv_out.conv")

    def __init__(self, vae: Any, pool: ClipPool, batch: int) -> None:
        super().__init__()
        self.vae = vae
        self.pool = pool
        self.batch = batch
        self.encode: Callable[[Tensor], Tensor] = vae.encoder
        self.decode: Callable[[Tensor], Tensor] = vae.decoder

    def fuse(self) -> None:
        """Fuse the norms and activations between the convolutions with torch.compile."""
        self.encode = torch.compile(self.vae.encoder)
        self.decode = torch.compile(self.vae.decoder)

    def forward(self) -> dict[str, Tensor]:
        """Draw a batch and return the loss and its parts."""
        video, _ = self.pool.sample(self.batch)
        mean, logvar = self.encode(video).float().chunk(2, 1)
        latents = mean + torch.randn_like(mean) * (0.5 * logvar).exp()
        prediction = self.decode(latents).float()
        reconstruction, kl = video_loss(prediction, video), gaussian_kl(mean, logvar)
        loss = reconstruction + KL_WEIGHT * kl
        return {"loss": loss, "kl": kl, "psnr_db": mean_psnr(prediction, video)}


class DecoderTask(AutoencoderTask):
    """The decoder of a trained autoencoder alone; its encoder is frozen, so that the latents stay as they are.

    Squared error weighs more than before: absolute error prefers the median of what a latent may stand for.
    """

    def forward(self) -> dict[str, Tensor]:
        """Draw a batch and return the loss and its parts."""
        video, _ = self.pool.sample(self.batch)
        with torch.no_grad():
            mean = self.encode(video).chunk(2, 1)[0].float()
        prediction = self.decode(mean).float()
        loss = video_loss(prediction, video) + SQUARED_ERROR_WEIGHT * mse_loss(prediction, video)
        return {"loss": loss, "psnr_db": mean_psnr(prediction, video)}


@torch.no_grad()
def mean_psnr(prediction: Tensor, video: Tensor) -> Tensor:
    """The mean over clips of the PSNR in dB, of what was not clamped; both [B, 3, T, H, W] in about [-1, 1]."""
    return -10 * ((prediction - video) / 2).square().mean((1, 2, 3, 4)).log10().mean()


@torch.no_grad()
def initialise(vae: Any, video: Tensor) -> None:
    """Centre every convolution of a fresh autoencoder on one batch of video [B, 3, T, H, W].

    The second convolution of a residual block starts at half strength and the decoder's last at 0.3; the posterior
    starts narrow (log-variance -5), so that the decoder learns from the mean.
    """

    def scale(name: str) -> float:
        if name == "decoder.conv_out.conv":
            return 0.3
        return 0.5 if name.endswith("conv2.conv") else 1.0

    with centre_convolutions(vae, scale):
        vae.decoder(vae.encoder(video).chunk(2, 1)[0])
    last = vae.encoder.conv_out.conv
    last.weight[-1].mul_(0.1)
    last.bias[-1].fill_(LOGVAR_START)


@torch.no_grad()
def measure_latents(vae: Any, pool: ClipPool, *, clips: int = 2_048, batch: int = 32) -> None:
    """Write the mean and deviation of each latent channel over the pool into the autoencoder's own buffers."""
    means: list[Tensor] = []
    for _ in range(max(1, min(clips, len(pool)) // batch)):
        video, _attributes = pool.sample(batch)
        means.append(vae.encoder(video).float().chunk(2, 1)[0])
    latents = torch.cat(means)
    vae.latents_mean.copy_(latents.mean((0, 2, 3, 4)))
    vae.latents_std.copy_(latents.std((0, 2, 3, 4)))
