"""Learned positions of tokens that lie on a grid of time, rows and columns."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foresight.adapters.config import Grid

__all__ = ["FactorisedPositions"]


class FactorisedPositions(nn.Module):
    """The sum of a time, a row and a column embedding for every token of a grid.

    Factorised as in Arnab et al., ViViT (2021): a few hundred vectors cover every grid up to `max_grid`.
    """

    def __init__(self, max_grid: Grid, hidden_dim: int) -> None:
        super().__init__()
        self.max_grid = max_grid
        # Small against the projected features (of order one), so that content leads at the start of training.
        self.time = nn.Parameter(torch.randn(max_grid[0], hidden_dim) * 0.02)
        self.row = nn.Parameter(torch.randn(max_grid[1], hidden_dim) * 0.02)
        self.column = nn.Parameter(torch.randn(max_grid[2], hidden_dim) * 0.02)

    def forward(self, grid: Grid) -> Tensor:
        """The embeddings [t * h * w, hidden_dim] of `grid` = (t, h, w), columns fastest.

        Raises ValueError for a grid beyond `max_grid`.
        """
        if any(not 1 <= size <= most for size, most in zip(grid, self.max_grid, strict=True)):
            raise ValueError(f"grid {grid}: every size must be from 1 to that of max_grid {self.max_grid}")
        t, h, w = grid
        embeddings = self.time[:t, None, None] + self.row[None, :h, None] + self.column[None, None, :w]
        return embeddings.flatten(0, 2)
