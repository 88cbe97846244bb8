"""The two encoders' tokens as one vector each."""

from __future__ import annotations

from torch import Tensor, nn

from foresight.adapters.config import AdapterConfig, Grid
from foresight.adapters.features import check_features, check_grids
from foresight.adapters.layer import EPS
from foresight.adapters.lengths import masked_mean

__all__ = ["PooledFeatures"]


class PooledFeatures(nn.Module):
    """The mean of each encoder's true tokens, normalised; where the tokens lay is lost."""

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self._config = config
        self.vlm_norm = nn.LayerNorm(config.vlm_dim, eps=EPS)
        self.dino_norm = nn.LayerNorm(config.dino_dim, eps=EPS)

    def forward(
        self,
        vlm_hidden_states: Tensor,
        dino_hidden_states: Tensor,
        *,
        vlm_grid: Grid | None = None,
        dino_grid: Grid | None = None,
        vlm_lengths: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Map [B, N, vlm_dim] and [B, M, dino_dim] to [B, vlm_dim] and [B, dino_dim].

        Raises ValueError for wrong feature sizes, grids and lengths.
        """
        check_features(self._config, vlm_hidden_states, dino_hidden_states)
        check_grids(vlm_hidden_states, dino_hidden_states, vlm_grid, dino_grid, vlm_lengths)
        vlm: Tensor = self.vlm_norm(masked_mean(vlm_hidden_states, vlm_lengths, grid=vlm_grid))
        dino: Tensor = self.dino_norm(dino_hidden_states.mean(1))
        return vlm, dino
