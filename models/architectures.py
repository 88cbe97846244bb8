"""Untrained modules in the libraries' own classes, from the sizes in `presets.ARCHITECTURES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from foresight.models.initialization import fill_with_noise, skip_random_values

__all__ = ["build_dino", "build_empty", "build_random", "build_transformer", "build_vae", "build_vlm"]

Architecture = Mapping[str, Any]


def build_vlm(arch: Architecture) -> nn.Module:
    """Build a `Qwen2_5_VisionTransformerPretrainedModel` from its configuration's keyword arguments."""
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

    config = Qwen2_5_VLVisionConfig(**arch)
    tower: nn.Module = Qwen2_5_VisionTransformerPretrainedModel(config)
    return tower


def build_dino(arch: Architecture) -> nn.Module:
    """Build a timm `VisionTransformer` from its constructor's keyword arguments."""
    from timm.models.vision_transformer import VisionTransformer

    model: nn.Module = VisionTransformer(**arch)
    return model


def build_transformer(arch: Architecture) -> nn.Module:
    """Build an `LTXVideoTransformer3DModel` from its configuration."""
    from diffusers.models.transformers.transformer_ltx import LTXVideoTransformer3DModel

    model: nn.Module = LTXVideoTransformer3DModel.from_config(dict(arch))
    return model


def build_vae(arch: Architecture) -> nn.Module:
    """Build an `AutoencoderKLLTXVideo` from its configuration; decoding in tiles or slices stays off."""
    from diffusers.models.autoencoders.autoencoder_kl_ltx import AutoencoderKLLTXVideo

    model: nn.Module = AutoencoderKLLTXVideo.from_config(dict(arch))
    return model


def build_empty(
    build: Callable[[Architecture], nn.Module],
    arch: Architecture,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> nn.Module:
    """Build a frozen module on a device whose weights still have to be filled in.

    Weights are of `dtype`; buffers (latent statistics, rotary tables) are right already and stay in float32.
    """
    with skip_random_values(), device:
        module = build(arch)
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)
    return module.eval().requires_grad_(False)


def build_random(
    build: Callable[[Architecture], nn.Module],
    arch: Architecture,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> nn.Module:
    """Build a frozen module with cheap random weights straight on the device, for latency work."""
    module = build_empty(build, arch, device=device, dtype=dtype)
    fill_with_noise(module)
    return module
