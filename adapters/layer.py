"""One layer of the adapters' body."""

from __future__ import annotations

from torch import Tensor, nn

from foresight.adapters.attention import CrossAttention, SelfAttention

__all__ = ["EPS", "AdapterLayer", "FeedForward"]

EPS = 1e-5


class FeedForward(nn.Module):
    """Two projections with an exact (erf) GELU between them."""

    def __init__(self, hidden_dim: int, ff_dim: int) -> None:
        super().__init__()
        self.up = nn.Linear(hidden_dim, ff_dim)
        self.activation = nn.GELU()
        self.down = nn.Linear(ff_dim, hidden_dim)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map [B, Q, hidden_dim] to the same shape."""
        output: Tensor = self.down(self.activation(self.up(hidden_states)))
        return output


class AdapterLayer(nn.Module):
    """Self-attention, cross-attention and feed-forward, each after a norm and added to its input.

    A `torch.nn.TransformerDecoderLayer` with `norm_first=True` and no dropout, with the projections named for
    packing.
    """

    def __init__(self, hidden_dim: int, num_heads: int, ff_dim: int) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(hidden_dim, eps=EPS)
        self.self_attention = SelfAttention(hidden_dim, num_heads)
        self.cross_norm = nn.LayerNorm(hidden_dim, eps=EPS)
        self.cross_attention = CrossAttention(hidden_dim, num_heads)
        self.ff_norm = nn.LayerNorm(hidden_dim, eps=EPS)
        self.feed_forward = FeedForward(hidden_dim, ff_dim)

    def forward(self, hidden_states: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Refine `hidden_states` [B or 1, Q, hidden_dim] by `context` [B, K, hidden_dim].

        Returns [B, Q, hidden_dim].
        `mask` [B, K] is boolean, true where a context token takes part.
        """
        hidden_states = hidden_states + self.self_attention(self.self_norm(hidden_states))
        hidden_states = hidden_states + self.cross_attention(self.cross_norm(hidden_states), context, mask)
        output: Tensor = hidden_states + self.feed_forward(self.ff_norm(hidden_states))
        return output
