"""The part that the attention adapters share: learned queries read the context through a few layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foresight.adapters.config import AdapterConfig, Grid
from foresight.adapters.context import FeatureContext
from foresight.adapters.layer import EPS, AdapterLayer

__all__ = ["AdapterBody"]


class AdapterBody(nn.Module):
    """Learned queries, pre-norm layers, a last norm and the projection to the output's width.

    The queries start at 0.02 * N(0, 1), as in the plan's sketch: the norm before the first layer brings them
    to unit scale, and the small residual lets the first cross-attention decide what each of them holds.
    """

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.context = FeatureContext(config)
        self.queries = nn.Parameter(torch.randn(config.num_queries, config.hidden_dim) * 0.02)
        self.layers = nn.ModuleList(
            AdapterLayer(config.hidden_dim, config.num_heads, config.ff_dim) for _ in range(config.num_layers)
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
        """Map [B, N, vlm_dim] and [B, M, dino_dim] to [B, num_queries, output_dim].

        Raises ValueError for wrong feature sizes, grids and lengths.
        """
        context, mask = self.context(
            vlm_hidden_states,
            dino_hidden_states,
            vlm_grid=vlm_grid,
            dino_grid=dino_grid,
            vlm_lengths=vlm_lengths,
        )
        # One row: the first self-attention is the same for every clip, and the context brings the batch in.
        hidden_states = self.queries[None]
        for layer in self.layers:
            hidden_states = layer(hidden_states, context, mask)
        output: Tensor = self.out_proj(self.norm(hidden_states))
        return output
