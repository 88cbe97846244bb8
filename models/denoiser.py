"""The velocity of LTX-Video's transformer, with everything that a denoising step repeats taken out of it.

Runs the blocks of diffusers' `LTXVideoTransformer3DModel` by a loop of its own: the projected conditioning,
the cross-attention keys and values of every layer and the rotary tables are computed once, attention has no
masks. It knows nothing of schedules and of the autoencoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Conditioning", "LTXDenoiser"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditioning:
    """Cross-attention keys (normalised) and values of every layer, each `[B, heads, tokens, head_dim]`."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


class LTXDenoiser(nn.Module):
    """Predicts velocities with an `LTXVideoTransformer3DModel`; `fps` is the frame rate of its videos.

    `causal_positions` chooses the rotary convention: pixel times with the causal fix, as the releases from
    0.9.5 on expect (diffusers' `LTXConditionPipeline`), or plain latent times (`LTXPipeline`).
    """

    transformer: Any

    def __init__(self, transformer: nn.Module, *, fps: float, causal_positions: bool) -> None:
        super().__init__()
        self.transformer = transformer
        self.fps = fps
        self.causal_positions = causal_positions
        self._rotary: dict[tuple[tuple[int, int, int], torch.device], tuple[Tensor, Tensor]] = {}

    def condition(self, encoder_hidden_states: Tensor) -> Conditioning:
        """Project conditioning tokens `[B, N, caption_channels]` to every layer's keys and values."""
        transformer = self.transformer
        projected = transformer.caption_projection(encoder_hidden_states.to(self._dtype))
        attentions = [block.attn2 for block in transformer.transformer_blocks]
        return Conditioning(
            keys=tuple(_heads(attn.norm_k(attn.to_k(projected)), attn.heads) for attn in attentions),
            values=tuple(_heads(attn.to_v(projected), attn.heads) for attn in attentions),
        )

    def forward(
        self, latents: Tensor, sigma: Tensor | float, conditioning: Conditioning, *, given_frames: int = 0
    ) -> Tensor:
        """Return the float32 velocity `[B, 128, T, H, W]` at model-space latents and a noise level in [0, 1].

        `sigma` is a number, a tensor without dimensions or one level a clip `[B]`. The first `given_frames`
        latent frames are taken for clean: their tokens are told level 0. Run once before a CUDA graph
        capture.
        """
        transformer = self.transformer
        grid = (latents.shape[2], latents.shape[3], latents.shape[4])
        rotary = self.rotary_tables(grid, latents.device)
        modulation, embedded = self._embed_time(latents, sigma, given_frames)
        hidden_states = transformer.proj_in(latents.flatten(2).transpose(1, 2).to(self._dtype))
        layers = zip(transformer.transformer_blocks, conditioning.keys, conditioning.values, strict=True)
        for block, keys, values in layers:
            hidden_states = _run_block(block, hidden_states, modulation, rotary, keys, values)
        shift, scale = (transformer.scale_shift_table[None, None] + embedded[:, :, None]).unbind(2)
        hidden_states = transformer.norm_out(hidden_states) * (1 + scale) + shift
        velocity: Tensor = transformer.proj_out(hidden_states)
        return velocity.float().transpose(1, 2).reshape(latents.shape)

    def rotary_tables(self, grid: tuple[int, int, int], device: torch.device) -> tuple[Tensor, Tensor]:
        """Return cached float32 cosines and sines `[1, T*H*W, inner_dim / 2]` of a latent grid."""
        if (grid, device) not in self._rotary:
            # Tensors made in inference mode could not be used by a later training step.
            with torch.inference_mode(False), torch.no_grad():
                self._rotary[grid, device] = self._build_rotary_tables(grid, device)
        return self._rotary[grid, device]

    def _build_rotary_tables(self, grid: tuple[int, int, int], device: torch.device) -> tuple[Tensor, Tensor]:
        axes = [torch.arange(size, dtype=torch.float32, device=device) for size in grid]
        times, rows, columns = torch.meshgrid(*axes, indexing="ij")
        if self.causal_positions:
            seconds = (times * 8 + 1 - 8).clamp(min=0) * (1.0 / self.fps)
        else:
            seconds = times * (8 / self.fps)
        coordinates = torch.stack([seconds, rows * 32, columns * 32]).flatten(1)[None]
        cosines, sines = self.transformer.rope(coordinates, video_coords=coordinates)
        # The library repeats every value for both members of a rotated pair.
        return cosines[..., ::2].contiguous(), sines[..., ::2].contiguous()

    def _embed_time(self, latents: Tensor, sigma: Tensor | float, given_frames: int) -> tuple[Tensor, Tensor]:
        frames = latents.shape[2]
        if not 0 <= given_frames < frames:
            raise ValueError(
                f"given_frames {given_frames}: must leave some of {frames} latent frames to denoise"
            )
        if not isinstance(sigma, Tensor):
            sigma = torch.full((1,), sigma, dtype=torch.float32, device=latents.device)
        timesteps = sigma.reshape(-1, 1).float() * 1000.0
        if given_frames:
            timesteps = torch.cat([torch.zeros_like(timesteps), timesteps], dim=1)
        levels, count = timesteps.shape
        modulation, embedded = self.transformer.time_embed(
            timesteps.flatten(), batch_size=levels, hidden_dtype=self._dtype
        )
        modulation = modulation.view(levels, count, 6, -1)
        embedded = embedded.view(levels, count, -1)
        if given_frames:
            tokens = latents.shape[3] * latents.shape[4]
            modulation = _spread(modulation, given_frames * tokens, frames * tokens)
            embedded = _spread(embedded, given_frames * tokens, frames * tokens)
        return modulation, embedded

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.transformer.proj_in.weight.dtype
        return dtype


def _spread(levels: Tensor, given: int, total: int) -> Tensor:
    # [B, 2, ...]: the first level for the given tokens, the second for the others
    clean = levels[:, :1].expand(-1, given, *levels.shape[2:])
    noisy = levels[:, 1:].expand(-1, total - given, *levels.shape[2:])
    return torch.cat([clean, noisy], dim=1)


def _run_block(
    block: Any,
    hidden_states: Tensor,
    modulation: Tensor,
    rotary: tuple[Tensor, Tensor],
    keys: Tensor,
    values: Tensor,
) -> Tensor:
    ada = block.scale_shift_table[None, None] + modulation
    shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = ada.unbind(dim=2)
    normed = block.norm1(hidden_states) * (1 + scale_msa) + shift_msa
    attn = block.attn1
    query = _heads(_rotate(attn.norm_q(attn.to_q(normed)), rotary), attn.heads)
    key = _heads(_rotate(attn.norm_k(attn.to_k(normed)), rotary), attn.heads)
    hidden_states = (
        hidden_states + _attend(attn, query, key, _heads(attn.to_v(normed), attn.heads)) * gate_msa
    )
    attn = block.attn2
    query = _heads(attn.norm_q(attn.to_q(hidden_states)), attn.heads)
    hidden_states = hidden_states + _attend(attn, query, keys, values)
    normed = block.norm2(hidden_states) * (1 + scale_mlp) + shift_mlp
    result: Tensor = hidden_states + block.ff(normed) * gate_mlp
    return result


def _attend(attn: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    attended = F.scaled_dot_product_attention(query, key, value)
    projected: Tensor = attn.to_out[0](attended.transpose(1, 2).flatten(2))
    return projected


def _heads(states: Tensor, heads: int) -> Tensor:
    return states.view(*states.shape[:2], heads, -1).transpose(1, 2)


def _rotate(states: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    cosines, sines = rotary
    real, imaginary = states.float().view(*states.shape[:2], -1, 2).unbind(-1)
    turned = torch.stack([real * cosines - imaginary * sines, imaginary * cosines + real * sines], dim=-1)
    return turned.flatten(2).to(states.dtype)
