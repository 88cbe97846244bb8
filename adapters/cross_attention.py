"""The default adapter of the latent mode."""

from __future__ import annotations

from torch import Tensor

from foresight.adapters.adapter import Adapter
from foresight.adapters.body import AdapterBody
from foresight.adapters.config import AdapterConfig, Grid
from foresight.adapters.errors import AdapterError

__all__ = ["CrossAttentionAdapter"]


class CrossAttentionAdapter(Adapter):
    """One learned query for every position of the latent grid; their outputs are the latents.

    The cross-attention adapter of plan 000 (E2.3) on the body of the query adapter. Raises AdapterError
    without a grid.
    """

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        if config.output_grid is None:
            raise AdapterError("output_grid None: a latent adapter needs (time, rows, columns)")
        self.config = config
        self.output_grid = config.output_grid
        self.body = AdapterBody(config)

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

        Raises ValueError as `Adapter.forward` says.
        """
        output: Tensor = self.body(
            vlm_hidden_states,
            dino_hidden_states,
            vlm_grid=vlm_grid,
            dino_grid=dino_grid,
            vlm_lengths=vlm_lengths,
        )
        return output.transpose(1, 2).contiguous().view(output.shape[0], -1, *self.output_grid)
