"""What the queries look at: the tokens of both encoders, in one width and one sequence."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from foresight.adapters.config import AdapterConfig, Grid
from foresight.adapters.features import check_features, check_grids
from foresight.adapters.layer import EPS
from foresight.adapters.lengths import true_tokens, zero_tail
from foresight.adapters.positions import FactorisedPositions

__all__ = ["FeatureContext", "FeatureStream"]


class FeatureStream(nn.Module):
    """One encoder's tokens, normalised, projected to the adapter's width and given their positions."""

    def __init__(self, dim: int, hidden_dim: int, max_grid: Grid) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.proj = nn.Linear(dim, hidden_dim)
        self.positions = FactorisedPositions(max_grid, hidden_dim)

    def forward(self, hidden_states: Tensor, grid: Grid | None = None) -> Tensor:
        """Map [B, N, dim] to [B, N, hidden_dim]; without a grid no positions are added.

        Tokens past those of the grid are padding and get no position.
        """
        projected: Tensor = self.proj(self.norm(hidden_states))
        if grid is None:
            return projected
        positions = self.positions(grid)
        padding = hidden_states.shape[1] - positions.shape[0]
        return projected + (pad(positions, (0, 0, 0, padding)) if padding else positions)


class FeatureContext(nn.Module):
    """DINO's tokens followed by the VLM's: the VLM's last, so that one length masks the tail."""

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self._config = config
        self.vlm = FeatureStream(config.vlm_dim, config.hidden_dim, config.max_grid)
        self.dino = FeatureStream(config.dino_dim, config.hidden_dim, config.dino_max_grid)

    def forward(
        self,
        vlm_hidden_states: Tensor,
        dino_hidden_states: Tensor,
        *,
        vlm_grid: Grid | None = None,
        dino_grid: Grid | None = None,
        vlm_lengths: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The context [B, M + N, hidden_dim] and its boolean mask [B, M + N].

        The mask is true where a token takes part, and None when all do.
        Takes `vlm_hidden_states` [B, N, vlm_dim] and `dino_hidden_states` [B, M, dino_dim].
        Raises ValueError for wrong feature sizes, grids and lengths.
        """
        check_features(self._config, vlm_hidden_states, dino_hidden_states)
        check_grids(vlm_hidden_states, dino_hidden_states, vlm_grid, dino_grid, vlm_lengths)
        keep = None
        if vlm_lengths is not None:
            keep = true_tokens(vlm_lengths, vlm_hidden_states, grid=vlm_grid)
            vlm_hidden_states = zero_tail(vlm_hidden_states, keep)
        dino = self.dino(dino_hidden_states, dino_grid)
        context = torch.cat([dino, self.vlm(vlm_hidden_states, vlm_grid)], dim=1)
        return context, None if keep is None else pad(keep, (dino.shape[1], 0), value=True)
