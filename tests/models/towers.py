"""Tiny configurations of the libraries' own classes, with every path of the real ones."""

from __future__ import annotations

from typing import Any

import torch

VLM = {
    "depth": 3,
    "hidden_size": 32,
    "num_heads": 2,
    "intermediate_size": 48,
    "window_size": 112,
    "fullatt_block_indexes": [1],
    "out_hidden_size": 40,
}
DINO = {
    "img_size": 56,
    "patch_size": 14,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 0,
    "global_pool": "token",
    "init_values": 1e-5,
}
TRANSFORMER = {
    "in_channels": 8,
    "out_channels": 8,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "cross_attention_dim": 32,
    "caption_channels": 24,
}
VAE = {
    "latent_channels": 8,
    "block_out_channels": [8, 8, 8, 8],
    "down_block_types": ["LTXVideo095DownBlock3D"] * 3,
    "spatio_temporal_scaling": [True, True, True],
    "layers_per_block": [1, 1, 1, 1],
    "downsample_type": ["spatiotemporal"] * 3,
    "decoder_block_out_channels": [8, 8, 8],
    "decoder_layers_per_block": [1, 1, 1, 1],
    "decoder_spatio_temporal_scaling": [True, True, True],
    "decoder_inject_noise": [False] * 4,
    "upsample_residual": [True] * 3,
    "upsample_factor": [1] * 3,
    "timestep_conditioning": False,
}


def randomize(model: Any, std: float = 0.1) -> Any:
    """Replace initial values by ones that matter: the libraries start many tensors at zero or one."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("timestep_scale_multiplier"):
                continue
            parameter.normal_(std=std, generator=generator)
            if parameter.dim() == 1 and name.endswith("weight"):
                parameter.add_(1.0)
    return model.eval().requires_grad_(False)
