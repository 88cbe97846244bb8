"""The default adapter of the conditioning mode."""

from __future__ import annotations

from torch import Tensor

from foresight.adapters.adapter import Adapter
from foresight.adapters.body import AdapterBody
from foresight.adapters.config import AdapterConfig, Grid

__all__ = ["ScalableQueryAdapter"]


class ScalableQueryAdapter(Adapter):
    """Learned queries that become the tokens which stand in for the video decoder's text embedding.

    The query adapter of the scaling study (plan 004, E2.1), with norms before the layers and on its inputs.
    """

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.config = config
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
        """Map [B, N, vlm_dim] and [B, M, dino_dim] to encoder_hidden_states [B, num_queries, output_dim].

        Raises ValueError as `Adapter.forward` says.
        """
        output: Tensor = self.body(
            vlm_hidden_states,
            dino_hidden_states,
            vlm_grid=vlm_grid,
            dino_grid=dino_grid,
            vlm_lengths=vlm_lengths,
        )
        return output
