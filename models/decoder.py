"""The frozen video decoder: conditioning tokens or latents in, frames out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from foresight.models.denoiser import Conditioning, LTXDenoiser
from foresight.models.latents import denormalize_latents
from foresight.models.noise import latent_noise
from foresight.models.presets import StackConfig

__all__ = ["LTXDecoder"]


class LTXDecoder(nn.Module):
    """Denoises with an `LTXVideoTransformer3DModel` and decodes with an `AutoencoderKLLTXVideo`.

    Raises ValueError where the autoencoder expects a decoding time step and the configuration has none.
    """

    vae: Any

    def __init__(self, transformer: nn.Module, vae: nn.Module, config: StackConfig) -> None:
        super().__init__()
        self.denoiser = LTXDenoiser(transformer, fps=config.fps, causal_positions=config.causal_positions)
        self.vae = vae
        if self.vae.config.timestep_conditioning and config.decode_timestep is None:
            raise ValueError(
                "decode_timestep None: this autoencoder is conditioned on a time step, 0.05 is usual"
            )
        self.decode_timestep = config.decode_timestep if self.vae.config.timestep_conditioning else None
        self.decode_noise_scale = config.decode_noise_scale

    @property
    def transformer(self) -> Any:
        """The `LTXVideoTransformer3DModel` that denoising runs."""
        return self.denoiser.transformer

    def condition(self, encoder_hidden_states: Tensor) -> Conditioning:
        """Prepare conditioning tokens `[B, N, 4096]`; needed once a chunk, not once a step."""
        return self.denoiser.condition(encoder_hidden_states)

    def velocity(
        self, latents: Tensor, sigma: Tensor | float, conditioning: Conditioning, *, given_frames: int = 0
    ) -> Tensor:
        """Return the float32 velocity at latents `[B, 128, T, H, W]`; see `LTXDenoiser.forward`."""
        velocity: Tensor = self.denoiser(latents, sigma, conditioning, given_frames=given_frames)
        return velocity

    def denoise(
        self,
        encoder_hidden_states: Tensor | Conditioning,
        noise: Tensor,
        sigmas: Sequence[float],
        *,
        given: Tensor | None = None,
    ) -> Tensor:
        """Integrate from noise `[B, 128, T, H, W]` to model-space latents by Euler steps in float32.

        `encoder_hidden_states` are tokens `[B, N, 4096]` or what `condition` made of them. `given` holds the
        clean first latent frames `[B, 128, G, H, W]` of a chunk: they are kept, and the others are denoised
        beside them.
        """
        conditioning = encoder_hidden_states
        if not isinstance(conditioning, Conditioning):
            conditioning = self.condition(conditioning)
        given_frames = 0 if given is None else given.shape[2]
        latents = noise.float()
        if given is not None:
            latents = torch.cat([given.float(), latents[:, :, given_frames:]], dim=2)
        for sigma, sigma_next in pairwise(sigmas):
            velocity = self.velocity(latents, sigma, conditioning, given_frames=given_frames)
            step = (sigma_next - sigma) * velocity
            if given_frames:
                step = torch.cat(
                    [torch.zeros_like(step[:, :, :given_frames]), step[:, :, given_frames:]], dim=2
                )
            latents = latents + step
        return latents

    def noise(self, seed: int, first_index: int, shape: tuple[int, ...]) -> Tensor:
        """Draw the noise `[B, 128, T, H, W]` that denoising starts from, on the decoder's device.

        `first_index` is the absolute index of the first latent frame; any chunking gives the same numbers.
        """
        return latent_noise(seed, first_index, shape, purpose="denoise", device=self.vae.latents_mean.device)

    def decode_noise(self, seed: int, first_index: int, shape: tuple[int, ...]) -> Tensor | None:
        """Draw the noise that decoding mixes in, keyed as in `noise`; None where decoding uses none."""
        if self.decode_timestep is None or self.decode_noise_scale == 0:
            return None
        return latent_noise(seed, first_index, shape, purpose="decode", device=self.vae.latents_mean.device)

    def decode(
        self,
        latents: Tensor,
        seed: int = 0,
        first_index: int = 0,
        *,
        noise: Tensor | None = None,
        clamp: bool = True,
    ) -> Tensor:
        """Decode model-space latents `[B, 128, T, H, W]` to a float32 video `[B, 3, 8(T-1)+1, 32H, 32W]`.

        The video is in [-1, 1]; `clamp=False` leaves what overshoots, for training. `noise` replaces what
        `decode_noise(seed, first_index, shape)` draws: a CUDA graph passes it in.
        """
        states = denormalize_latents(latents, self.vae)
        timestep = None
        if self.decode_timestep is not None:
            if noise is None:
                noise = self.decode_noise(seed, first_index, tuple(latents.shape))
            if noise is not None:
                states = (1 - self.decode_noise_scale) * states + self.decode_noise_scale * noise
            timestep = torch.full((states.shape[0],), self.decode_timestep, device=states.device)
        # The inner decoder: `vae.decode` may cut into slices or tiles, and is not what torch.compile
        # replaces.
        weight = self.vae.decoder.conv_in.conv.weight
        video: Tensor = self.vae.decoder(states.to(weight.dtype), timestep).float()
        return video.clamp(-1.0, 1.0) if clamp else video
