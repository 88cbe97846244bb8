"""Ways to write attention into a graph: torch's own operator, plain operators, or a plugin's node."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from foresight.adapters.attention import CrossAttention, SelfAttention

__all__ = ["Attend", "plain_attention", "replace_attention"]

Attend = Callable[[Tensor, Tensor, int, Tensor | None], Tensor]
"""(query [B, Q, C], keys and values side by side [B, K, 2C], heads, lengths or mask) -> [B, Q, C]."""


def plain_attention(query: Tensor, key_value: Tensor, num_heads: int, mask: Tensor | None) -> Tensor:
    """Attention of `query` [B, Q, C] to `key_value` [B, K, 2C] as products and a softmax; returns [B, Q, C].

    `mask` [B, K] is true where a token takes part; every row needs one such token.
    """
    key, value = key_value.chunk(2, dim=-1)
    scale = (query.shape[-1] // num_heads) ** -0.5
    query, key, value = (x.reshape(*x.shape[:2], num_heads, -1).transpose(1, 2) for x in (query, key, value))
    scores = (query * scale) @ key.transpose(2, 3)
    if mask is not None:
        # A number that every float type holds, and whose exponential is zero in all of them.
        scores = scores.masked_fill(~mask[:, None, None, :], -3e4)
    output: Tensor = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
    return output


def replace_attention(module: nn.Module, *, self_attend: Attend, cross_attend: Attend) -> None:
    """Let every attention below `module` compute what it does through the given functions."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, SelfAttention):
                setattr(parent, name, _SelfAttention(child, self_attend))
            elif isinstance(child, CrossAttention):
                setattr(parent, name, _CrossAttention(child, cross_attend))


class _SelfAttention(nn.Module):
    def __init__(self, attention: SelfAttention, attend: Attend) -> None:
        super().__init__()
        self.qkv, self.out, self.num_heads, self.attend = (
            attention.qkv,
            attention.out,
            attention.num_heads,
            attend,
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        width = hidden_states.shape[-1]
        query, key_value = self.qkv(hidden_states).split([width, 2 * width], dim=-1)
        output: Tensor = self.out(self.attend(query, key_value, self.num_heads, None))
        return output


class _CrossAttention(nn.Module):
    def __init__(self, attention: CrossAttention, attend: Attend) -> None:
        super().__init__()
        self.q, self.kv, self.out = attention.q, attention.kv, attention.out
        self.num_heads, self.attend = attention.num_heads, attend

    def forward(self, hidden_states: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        query = self.q(hidden_states).expand(context.shape[0], -1, -1)
        output: Tensor = self.out(self.attend(query, self.kv(context), self.num_heads, mask))
        return output
