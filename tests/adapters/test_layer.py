"""A layer against PyTorch's own decoder layer."""

from __future__ import annotations

import torch
from torch import nn

from foresight.adapters.layer import AdapterLayer


def test_layer_is_a_pre_norm_decoder_layer() -> None:
    layer = AdapterLayer(64, 2, 96)
    reference = nn.TransformerDecoderLayer(
        64, 2, 96, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    cross = layer.cross_attention
    state = {
        "self_attn.in_proj_weight": layer.self_attention.qkv.weight,
        "self_attn.in_proj_bias": layer.self_attention.qkv.bias,
        "multihead_attn.in_proj_weight": torch.cat([cross.q.weight, cross.kv.weight]),
        "multihead_attn.in_proj_bias": torch.cat([cross.q.bias, cross.kv.bias]),
    }
    modules = {
        "self_attn.out_proj": layer.self_attention.out,
        "multihead_attn.out_proj": cross.out,
        "linear1": layer.feed_forward.up,
        "linear2": layer.feed_forward.down,
        "norm1": layer.self_norm,
        "norm2": layer.cross_norm,
        "norm3": layer.ff_norm,
    }
    for name, module in modules.items():
        state |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
    reference.load_state_dict(state)
    x, context = torch.randn(2, 5, 64), torch.randn(2, 9, 64)
    torch.testing.assert_close(layer(x, context), reference(x, context), rtol=1e-4, atol=1e-5)
