"""Both encoders' tokens, projected one by one and laid on the latent grid."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn

from foresight.adapters.config import AdapterConfig, Grid
from foresight.adapters.errors import AdapterError
from foresight.adapters.features import check_features, check_grids
from foresight.adapters.lengths import true_tokens, zero_tail
from foresight.adapters.resample import resample_grid

__all__ = ["GridStreams"]


class GridStreams(nn.Module):
    """The sum of both streams on the latent grid: every token through its stream's network, then resampled.

    Raises AdapterError for a configuration without a latent grid.
    """

    def __init__(self, config: AdapterConfig, network: Callable[[int], nn.Module]) -> None:
        super().__init__()
        if config.output_grid is None:
            raise AdapterError("output_grid None: a latent adapter needs (time, rows, columns)")
        self._config = config
        self.output_grid = config.output_grid
        self.vlm = network(config.vlm_dim)
        self.dino = network(config.dino_dim)

    def forward(
        self,
        vlm_hidden_states: Tensor,
        dino_hidden_states: Tensor,
        *,
        vlm_grid: Grid | None = None,
        dino_grid: Grid | None = None,
        vlm_lengths: Tensor | None = None,
    ) -> Tensor:
        """Map [B, N, vlm_dim] and [B, M, dino_dim] to [B, T', H', W', C], C channels of the networks.

        Raises ValueError for wrong feature sizes, missing or wrong grids, and wrong lengths.
        """
        if vlm_grid is None or dino_grid is None:
            architecture = self._config.architecture
            raise ValueError(f"vlm_grid {vlm_grid}, dino_grid {dino_grid}: {architecture} needs both grids")
        check_features(self._config, vlm_hidden_states, dino_hidden_states)
        check_grids(vlm_hidden_states, dino_hidden_states, vlm_grid, dino_grid, vlm_lengths)
        keep = None
        if vlm_lengths is not None:
            vlm_hidden_states = vlm_hidden_states[:, : math.prod(vlm_grid)]
            keep = true_tokens(vlm_lengths, vlm_hidden_states)
            vlm_hidden_states = zero_tail(vlm_hidden_states, keep)
        vlm = resample_grid(self.vlm(vlm_hidden_states), vlm_grid, self.output_grid, keep)
        return vlm + resample_grid(self.dino(dino_hidden_states), dino_grid, self.output_grid)
