"""The adapter made of low-rank linear maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foresight.adapters.adapter import Adapter
from foresight.adapters.config import AdapterConfig, Grid
from foresight.adapters.pooled import PooledFeatures
from foresight.adapters.token_head import TokenHead

__all__ = ["LoRAAdapter"]


class LoRAAdapter(Adapter):
    """Project the mean of each stream to a low rank, which every conditioning token mixes in its own way.

    The LoRA style of plan 004 (E2.2 C): `hidden_dim` is the rank of a stream. The sketch's Linear(2 * rank,
    77 * 4096) has 40 million parameters; here a linear `TokenHead` of `ff_dim` channels a token stands for
    it. The sketch's `vlm_up` and `dino_up`, which its forward never calls, are left out; the pooled features
    are normalised.
    """

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.config = config
        rank = config.hidden_dim
        self.pooled = PooledFeatures(config)
        self.vlm_down = nn.Linear(config.vlm_dim, rank, bias=False)
        self.dino_down = nn.Linear(config.dino_dim, rank, bias=False)
        self.mix = TokenHead(2 * rank, config.num_queries, config.ff_dim, config.output_dim, nn.Identity())

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
        output: Tensor = self.mix(torch.cat([self.vlm_down(vlm), self.dino_down(dino)], dim=-1))
        return output
