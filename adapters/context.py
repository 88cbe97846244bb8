"""What the queries look at: the tokens of both encoders, in one width and one sequence."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from foresight.adapters.config import AdapterConfig, Grid
from foresight.adapters.layer import EPS
from foresight.adapters.lengths import true_tokens, zero_tail
from foresight.adapters.positions import FactorisedPositions, check_grid_tokens

__all__ = ["FeatureContext", "FeatureStream", "check_features"]


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
        self.vlm = FeatureStream(config.vlm_dim, config.hidden_dim, config.max_grid)
        self.dino = FeatureStream(config.dino_dim, config.hidden_dim, config.dino_max_grid)
        self._dims = config.vlm_dim, config.dino_dim

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
        check_features(vlm_hidden_states, dino_hidden_states, *self._dims)
        tokens = vlm_hidden_states.shape[1]
        if vlm_grid is not None:
            check_grid_tokens("vlm", vlm_grid, tokens, padded=vlm_lengths is not None)
        if dino_grid is not None:
            check_grid_tokens("dino", dino_grid, dino_hidden_states.shape[1], padded=False)
        keep = None
        if vlm_lengths is not None:
            most = tokens if vlm_grid is None else math.prod(vlm_grid)
            keep = true_tokens(vlm_lengths, vlm_hidden_states, most=most)
            vlm_hidden_states = zero_tail(vlm_hidden_states, keep)
        dino = self.dino(dino_hidden_states, dino_grid)
        context = torch.cat([dino, self.vlm(vlm_hidden_states, vlm_grid)], dim=1)
        return context, None if keep is None else pad(keep, (dino.shape[1], 0), value=True)


def check_features(
    vlm_hidden_states: Tensor, dino_hidden_states: Tensor, vlm_dim: int, dino_dim: int
) -> None:
    """Raise ValueError unless the features are [B, N, vlm_dim] and [B, M, dino_dim] with M at least 1."""
    streams = (("vlm", vlm_hidden_states, vlm_dim), ("dino", dino_hidden_states, dino_dim))
    for name, hidden_states, dim in streams:
        if hidden_states.ndim != 3 or hidden_states.shape[2] != dim:
            shape = tuple(hidden_states.shape)
            raise ValueError(f"{name}_hidden_states of shape {shape}: must be [batch, tokens, {dim}]")
    if vlm_hidden_states.shape[0] != dino_hidden_states.shape[0]:
        batches = f"{vlm_hidden_states.shape[0]} and {dino_hidden_states.shape[0]}"
        raise ValueError(f"batches of {batches}: vlm_hidden_states and dino_hidden_states must have the same")
    if dino_hidden_states.shape[1] == 0:
        raise ValueError("dino_hidden_states has no tokens: at least one is needed")
