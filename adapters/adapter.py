"""What every adapter is to its callers."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from foresight.adapters.config import AdapterConfig, Grid

__all__ = ["Adapter"]


class Adapter(nn.Module, ABC):
    """A trainable bridge from the encoders' tokens to what the decoder takes."""

    config: AdapterConfig

    @abstractmethod
    def forward(
        self,
        vlm_hidden_states: Tensor,
        dino_hidden_states: Tensor,
        *,
        vlm_grid: Grid | None = None,
        dino_grid: Grid | None = None,
        vlm_lengths: Tensor | None = None,
    ) -> Tensor:
        """Translate what the encoders saw into what the decoder takes.

        Takes `vlm_hidden_states` [B, N, vlm_dim] and `dino_hidden_states` [B, M, dino_dim] of one float type.
        The grids are (time, rows, columns) of the tokens in that order, columns fastest. Of each row of the
        VLM's tokens only the first `vlm_lengths` [B] (whole numbers, 0 to N) count; the rest is padding of
        any content. Returns [B, num_queries, output_dim] in conditioning mode, [B, output_dim, T', H', W'] in
        latent mode. Raises ValueError for wrong feature sizes, grids and lengths (lengths on an accelerator
        are not read).
        """
