"""Multi-head attention within the queries and from the queries to the context."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["CrossAttention", "SelfAttention"]


class SelfAttention(nn.Module):
    """Attention of the queries to each other; query, key and value come from one projection."""

    def __init__(self, hidden_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_dim, 3 * hidden_dim)
        self.out = nn.Linear(hidden_dim, hidden_dim)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map [B, Q, hidden_dim] to the same shape."""
        query, key, value = self.qkv(hidden_states).chunk(3, dim=-1)
        output: Tensor = self.out(_attend(query, key, value, self.num_heads, None))
        return output


class CrossAttention(nn.Module):
    """Attention of the queries to the context; key and value come from one projection."""

    def __init__(self, hidden_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(hidden_dim, hidden_dim)
        self.kv = nn.Linear(hidden_dim, 2 * hidden_dim)
        self.out = nn.Linear(hidden_dim, hidden_dim)

    def forward(self, hidden_states: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Read `context` [B, K, hidden_dim] by `hidden_states` [B or 1, Q, hidden_dim].

        Returns [B, Q, hidden_dim].
        `mask` [B, K] is boolean, true where a context token takes part; every row needs one such token.
        """
        # The fused kernels of SDPA take equal batches only.
        query = self.q(hidden_states).expand(context.shape[0], -1, -1)
        key, value = self.kv(context).chunk(2, dim=-1)
        output: Tensor = self.out(_attend(query, key, value, self.num_heads, mask))
        return output


def _attend(query: Tensor, key: Tensor, value: Tensor, num_heads: int, mask: Tensor | None) -> Tensor:
    query, key, value = (x.view(*x.shape[:2], num_heads, -1).transpose(1, 2) for x in (query, key, value))
    attn_mask = None if mask is None else mask[:, None, None, :]
    return scaled_dot_product_attention(query, key, value, attn_mask=attn_mask).transpose(1, 2).flatten(2)
