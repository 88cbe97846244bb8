"""The nano transformer's own conditioning: an encoder of latents that stands in for text and is thrown away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from foresight.training.losses import pixel_loss

__all__ = [
    "ConditioningEncoder",
    "VelocityTask",
    "encoder_weights",
    "pack_latents",
    "sample_sigmas",
    "unpack_latents",
    "velocity",
]

TIME_SHIFT = 2.0
AT_ONE = 0.25
DECODED_CLIPS = 8
SQUARED_ERROR_WEIGHT = 10.0


class ConditioningEncoder(nn.Module):
    """Turn model-space latents [B, 128, T', H', W'] into `num_queries` tokens [B, 77, 4096].

    Self-attention layers over the latents, then readers, in which learned queries read them. By default it is wider
    than the transformer that it steers: at a width of 256 with two readers it, and not the transformer, was what lost
    the detail. While training, `noise` before the last projection makes the content speak up: with little of it
    a fresh transformer's tokens end up as large constants with the content in small deviations, which neither it nor
    an adapter learns to use well; a finished transformer needs less.
    """

    def __init__(
        self,
        num_latents: int,
        *,
        channels: int = 128,
        width: int = 512,
        num_queries: int = 77,
        output_dim: int = 4096,
        num_encoders: int = 2,
        num_readers: int = 3,
        noise: float = 0.03,
    ) -> None:
        super().__init__()
        self.noise = noise
        self.embed = nn.Linear(channels, width)
        self.positions = nn.Parameter(torch.randn(num_latents, width) * 0.02)
        self.queries = nn.Parameter(torch.randn(num_queries, width) * 0.5)
        options: dict[str, Any] = {
            "dropout": 0.0,
            "activation": "gelu",
            "batch_first": True,
            "norm_first": True,
        }
        heads = max(1, width // 64)
        self.encoders = nn.ModuleList(
            [nn.TransformerEncoderLayer(width, heads, 4 * width, **options) for _ in range(num_encoders)]
        )
        self.readers = nn.ModuleList(
            [nn.TransformerDecoderLayer(width, heads, 4 * width, **options) for _ in range(num_readers)]
        )
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, output_dim)

    def forward(self, latents: Tensor) -> Tensor:
        """Encode latents; deterministic in evaluation mode."""
        memory = self.embed(pack_latents(latents)) + self.positions
        for encoder in self.encoders:
            memory = encoder(memory)
        hidden_states = self.queries.expand(latents.shape[0], -1, -1)
        for reader in self.readers:
            hidden_states = reader(hidden_states, memory)
        hidden_states = self.norm(hidden_states)
        if self.training:
            hidden_states = hidden_states + self.noise * torch.randn_like(hidden_states)
        tokens: Tensor = self.project(hidden_states)
        return tokens


def encoder_weights(run: Path) -> Path | None:
    """Where a training's best conditioning encoder lies in the folder `run`; None where there is none yet."""
    steering, encoder = run / "steering", run / "conditioning_encoder" / "weights.safetensors"
    # The transformer that it steers is written after it.
    if (steering / "weights.safetensors").exists():
        return steering / "encoder.safetensors"
    return encoder if encoder.exists() else None


def pack_latents(latents: Tensor) -> Tensor:
    """Turn [B, C, T', H', W'] into tokens [B, T' * H' * W', C]."""
    return latents.flatten(2).transpose(1, 2)


def unpack_latents(tokens: Tensor, size: tuple[int, ...]) -> Tensor:
    """Turn tokens [B, T' * H' * W', C] back into [B, C, T', H', W'] of `size` (T', H', W')."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, *size)


def sample_sigmas(batch: int, *, at_one: float, device: torch.device) -> Tensor:
    """Draw noise levels [batch] in (0, 1], shifted towards 1; the first share `at_one` is exactly 1.

    The first step of sampling starts at 1, so that level must be trained and not only approached.
    """
    sigmas = torch.rand(batch, device=device)
    sigmas = TIME_SHIFT * sigmas / (1 + (TIME_SHIFT - 1) * sigmas)
    certain = torch.arange(batch, device=device) < round(batch * at_one)
    return torch.where(certain, torch.ones_like(sigmas), sigmas)


def velocity(transformer: Any, latents: Tensor, sigmas: Tensor, tokens: Tensor, fps: float) -> Tensor:
    """The transformer's velocity [B, T' * H' * W', C] of noisy latents [B, C, T', H', W'] at `sigmas` [B]."""
    frames, height, width = latents.shape[2:]
    prediction: Tensor = transformer(
        hidden_states=pack_latents(latents),
        encoder_hidden_states=tokens,
        timestep=sigmas * 1000.0,
        encoder_attention_mask=None,
        num_frames=frames,
        height=height,
        width=width,
        rope_interpolation_scale=(8.0 / fps, 32.0, 32.0),
        return_dict=False,
    )[0]
    return prediction


class VelocityTask(nn.Module):
    """The nano transformer and its conditioning encoder, trained to predict velocities, together unless one is frozen.

    `draw` gives model-space latents [B, C, T', H', W'] of a batch of clips. With a `decode` from there to video, a few
    estimates from pure noise are decoded and compared with what the autoencoder makes of the true latents; squared
    error weighs more there than in `pixel_loss`, because quality is measured by it.
    """

    ADAMW = ("proj_in", "proj_out", "embed", "project")

    def __init__(
        self,
        transformer: Any,
        encoder: ConditioningEncoder,
        draw: Callable[[int], Tensor],
        batch: int,
        fps: float,
        decode: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.encoder = encoder
        self.draw = draw
        self.batch = batch
        self.fps = fps
        self.decode = decode

    def forward(self) -> dict[str, Tensor]:
        """Draw a batch and return the loss and its parts: all velocities' error, and that at full noise."""
        latents = self.draw(self.batch)
        ones = max(1, round(self.batch * AT_ONE))
        sigmas = sample_sigmas(self.batch, at_one=AT_ONE, device=latents.device)
        noise = torch.randn_like(latents)
        noisy = torch.lerp(latents, noise, sigmas[:, None, None, None, None])
        predicted = velocity(self.transformer, noisy, sigmas, self.encoder(latents), self.fps).float()
        error = (predicted - pack_latents(noise - latents)).square()
        scalars = {"loss": error.mean(), "at_one": error[:ones].mean()}
        if self.decode is not None:
            few = min(ones, DECODED_CLIPS)
            estimate = noise[:few] - unpack_latents(predicted[:few], latents.shape[2:])
            with torch.no_grad():
                wanted = self.decode(latents[:few])
            decoded = self.decode(estimate)
            squared = mse_loss(decoded.float(), wanted.float())
            scalars["decoded"] = pixel_loss(decoded, wanted) + SQUARED_ERROR_WEIGHT * squared
            scalars["loss"] = scalars["loss"] + scalars["decoded"]
        return scalars
