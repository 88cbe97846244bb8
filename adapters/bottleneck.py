"""The adapter that squeezes each encoder through a narrow layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foresight.adapters.adapter import Adapter
from foresight.adapters.config import AdapterConfig, Grid
from foresight.adapters.pooled import PooledFeatures
from foresight.adapters.token_head import TokenHead

__all__ = ["BottleneckAdapter"]


class BottleneckAdapter(Adapter):
    """Compress the mean of each stream, fuse, and expand to the conditioning tokens.

    The bottleneck of plan 004 (E2.2 B): `hidden_dim` is the width of its hidden layers, a quarter of it the
    bottleneck. The sketch expands by Linear(512, 77 * 1024) and Linear(77 * 1024, 77 * 4096), 25 billion
    parameters; here a `TokenHead` of `ff_dim` channels a token does it in about 7 million. The pooled
    features are normalised.
    """

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.config = config
        width, bottleneck = config.hidden_dim, config.hidden_dim // 4
        self.pooled = PooledFeatures(config)
        self.vlm_compress = _two_layers(config.vlm_dim, width, bottleneck)
        self.dino_compress = _two_layers(config.dino_dim, width, bottleneck)
        self.fusion = _two_layers(2 * bottleneck, width, width)
        self.expand = TokenHead(width, config.num_queries, config.ff_dim, config.output_dim, nn.GELU())

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

        The grids are checked and not used: the mean forgets positions. Raises ValueError as `Adapter.forward`
        says.
        """
        vlm, dino = self.pooled(
            vlm_hidden_states,
            dino_hidden_states,
            vlm_grid=vlm_grid,
            dino_grid=dino_grid,
            vlm_lengths=vlm_lengths,
        )
        fused = self.fusion(torch.cat([self.vlm_compress(vlm), self.dino_compress(dino)], dim=-1))
        output: Tensor = self.expand(fused)
        return output


def _two_layers(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, out_dim))
