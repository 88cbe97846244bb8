"""The linear probe: how far does no network at all get?"""

from __future__ import annotations

from torch import Tensor, nn

from foresight.adapters.adapter import Adapter
from foresight.adapters.config import AdapterConfig, Grid
from foresight.adapters.grid_streams import GridStreams

__all__ = ["LinearAdapter"]


class LinearAdapter(Adapter):
    """One linear map of every token to the latents' channels, resampled onto the latent grid and summed.

    The linear probe of plan 000 (E2.1). It has the size that the encoders' widths give it, 0.6M at full
    widths: linear throughout, hence no norm either. Raises AdapterError for a configuration without a latent
    grid.
    """

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.streams = GridStreams(config, lambda dim: nn.Linear(dim, config.output_dim))

    def forward(
        self,
        vlm_hidden_states: Tensor,
        dino_hidden_states: Tensor,
        *,
        vlm_grid: Grid | None = None,
        dino_grid: Grid | None = None,
        vlm_lengths: Tensor | None = None,
    ) -> Tensor:
        """Map [B, N, vlm_dim] and [B, M, dino_dim] to model-space latents [B, output_dim, T', H', W'].

        Both grids are needed. Raises ValueError as `Adapter.forward` says.
        """
        latents: Tensor = self.streams(
            vlm_hidden_states,
            dino_hidden_states,
            vlm_grid=vlm_grid,
            dino_grid=dino_grid,
            vlm_lengths=vlm_lengths,
        )
        return latents.permute(0, 4, 1, 2, 3).contiguous()
