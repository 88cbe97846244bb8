"""The adapter without attention: every latent position from the tokens that lie on it."""

from __future__ import annotations

from torch import Tensor, nn

from foresight.adapters.adapter import Adapter
from foresight.adapters.config import AdapterConfig, Grid
from foresight.adapters.grid_streams import GridStreams
from foresight.adapters.layer import EPS, FeedForward

__all__ = ["MLPAdapter", "ResidualBlock"]


class ResidualBlock(nn.Module):
    """A feed-forward after a norm, added to its input."""

    def __init__(self, hidden_dim: int, ff_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_dim, eps=EPS)
        self.feed_forward = FeedForward(hidden_dim, ff_dim)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map [..., hidden_dim] to the same shape."""
        output: Tensor = hidden_states + self.feed_forward(self.norm(hidden_states))
        return output


class MLPAdapter(Adapter):
    """A hidden layer for every token, laid on the latent grid, then residual blocks at every position.

    The MLPs of plan 000 (E2.2): `num_layers` 0 is its shallow one (a), 1 has the depth of its deeper one (b),
    4 is its residual one (c). Raises AdapterError for a configuration without a latent grid.
    """

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.streams = GridStreams(config, lambda dim: _token_network(dim, config.hidden_dim))
        self.blocks = nn.ModuleList(
            ResidualBlock(config.hidden_dim, config.ff_dim) for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_dim, eps=EPS)
        self.out_proj = nn.Linear(config.hidden_dim, config.output_dim)

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
        hidden_states = self.streams(
            vlm_hidden_states,
            dino_hidden_states,
            vlm_grid=vlm_grid,
            dino_grid=dino_grid,
            vlm_lengths=vlm_lengths,
        )
        for block in self.blocks:
            hidden_states = block(hidden_states)
        latents: Tensor = self.out_proj(self.norm(hidden_states))
        return latents.permute(0, 4, 1, 2, 3).contiguous()


def _token_network(in_dim: int, hidden_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(in_dim, eps=EPS), nn.Linear(in_dim, hidden_dim), nn.GELU())
