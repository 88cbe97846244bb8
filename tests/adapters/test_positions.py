"""Positions follow the grid's order: columns fastest, then rows, then time."""

from __future__ import annotations

import torch

from foresight.adapters.positions import FactorisedPositions


def test_a_token_gets_its_own_time_row_and_column() -> None:
    positions = FactorisedPositions((3, 4, 5), 8)
    embeddings = positions((2, 3, 4))
    assert embeddings.shape == (24, 8)
    time, row, column = 1, 2, 3
    expected = positions.time[time] + positions.row[row] + positions.column[column]
    torch.testing.assert_close(embeddings[time * 12 + row * 4 + column], expected)


def test_every_token_of_the_largest_grid_differs() -> None:
    embeddings = FactorisedPositions((3, 4, 5), 8)((3, 4, 5))
    assert torch.unique(embeddings, dim=0).shape[0] == 60
