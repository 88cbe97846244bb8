"""Attention against PyTorch's own, and its mask."""

from __future__ import annotations

import torch
from torch import nn

from foresight.adapters.attention import CrossAttention, SelfAttention


def _reference(
    in_proj_weight: torch.Tensor, in_proj_bias: torch.Tensor, out: nn.Linear
) -> nn.MultiheadAttention:
    reference = nn.MultiheadAttention(64, 2, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(in_proj_weight)
        reference.in_proj_bias.copy_(in_proj_bias)
        reference.out_proj.weight.copy_(out.weight)
        reference.out_proj.bias.copy_(out.bias)
    return reference


def test_self_attention_is_multi_head_attention() -> None:
    attention = SelfAttention(64, 2)
    reference = _reference(attention.qkv.weight, attention.qkv.bias, attention.out)
    x = torch.randn(2, 5, 64)
    torch.testing.assert_close(attention(x), reference(x, x, x)[0])


def test_cross_attention_is_multi_head_attention_with_a_mask() -> None:
    attention = CrossAttention(64, 2)
    weight = torch.cat([attention.q.weight, attention.kv.weight])
    reference = _reference(weight, torch.cat([attention.q.bias, attention.kv.bias]), attention.out)
    x, context = torch.randn(2, 5, 64), torch.randn(2, 9, 64)
    mask = torch.arange(9) < torch.tensor([[9], [4]])
    expected = reference(x, context, context, key_padding_mask=~mask)[0]
    torch.testing.assert_close(attention(x, context, mask), expected)


def test_queries_of_one_row_serve_the_whole_batch() -> None:
    attention = CrossAttention(64, 2)
    x, context = torch.randn(1, 5, 64), torch.randn(3, 9, 64)
    torch.testing.assert_close(attention(x, context), attention(x.expand(3, -1, -1), context))
