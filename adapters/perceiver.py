"""The adapter whose latent array reads the context again and again."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foresight.adapters.adapter import Adapter
from foresight.adapters.attention import CrossAttention, SelfAttention
from foresight.adapters.config import AdapterConfig, Grid
from foresight.adapters.context import FeatureContext
from foresight.adapters.layer import EPS, FeedForward

__all__ = ["PerceiverAdapter", "PerceiverIteration"]


class PerceiverIteration(nn.Module):
    """Cross-attention, self-attention and feed-forward, each after a norm and added to its input."""

    def __init__(self, hidden_dim: int, num_heads: int, ff_dim: int) -> None:
        super().__init__()
        self.cross_norm = nn.LayerNorm(hidden_dim, eps=EPS)
        self.cross_attention = CrossAttention(hidden_dim, num_heads)
        self.self_norm = nn.LayerNorm(hidden_dim, eps=EPS)
        self.self_attention = SelfAttention(hidden_dim, num_heads)
        self.ff_norm = nn.LayerNorm(hidden_dim, eps=EPS)
        self.feed_forward = FeedForward(hidden_dim, ff_dim)

    def forward(self, latents: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Refine `latents` [B or 1, Q, hidden_dim] by `context` [B, K, hidden_dim].

        Returns [B, Q, hidden_dim].
        `mask` [B, K] is boolean, true where a context token takes part.
        """
        latents = latents + self.cross_attention(self.cross_norm(latents), context, mask)
        latents = latents + self.self_attention(self.self_norm(latents))
        output: Tensor = latents + self.feed_forward(self.ff_norm(latents))
        return output


class PerceiverAdapter(Adapter):
    """A fixed array of learned latents that becomes the conditioning tokens over `num_layers` iterations.

    The Perceiver of plan 004 (E2.2 D; Jaegle et al., 2021). Beyond the sketch it has the norms, positions and
    feed-forward of the paper, which train and which bring it to the budget that the comparison fixes.
    """

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.context = FeatureContext(config)
        self.latents = nn.Parameter(torch.randn(config.num_queries, config.hidden_dim) * 0.02)
        self.iterations = nn.ModuleList(
            PerceiverIteration(config.hidden_dim, config.num_heads, config.ff_dim)
            for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_dim, eps=EPS)
        self.out_proj = nn.Linear(config.hidden_dim, config.output_dim)

    def forward(
        self,
        vlm_hidden_states: Tensor,
        dino_hidden_states: Tensor,
        *,
        vlm_grid: Grid | None = None,
        dino_grid: Grid | None = None,
        vlm_lengths: Tensor | None = None,
    ) -> Tensor:
        """Map [B, N, vlm_dim] and [B, M, dino_dim] to encoder_hidden_states [B, num_queries, output_dim].

        Raises ValueError as `Adapter.forward` says.
        """
        context, mask = self.context(
            vlm_hidden_states,
            dino_hidden_states,
            vlm_grid=vlm_grid,
            dino_grid=dino_grid,
            vlm_lengths=vlm_lengths,
        )
        latents = self.latents[None]
        for iteration in self.iterations:
            latents = iteration(latents, context, mask)
        output: Tensor = self.out_proj(self.norm(latents))
        return output
