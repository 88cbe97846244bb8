"""Untrained modules in the libraries' own classes, from the sizes in `presets.ARCHITECTURES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from foresight.models.windows import vision_frequencies
from torch import Tensor, nn

__all__ = ["build_dino", "build_random", "build_transformer", "build_vae", "build_vlm"]

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


def build_random(
    build: Callable[[Architecture], nn.Module],
    arch: Architecture,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> nn.Module:
    """Build a module with cheap random weights straight on the device, for latency work; the seed is fixed.

    Matrices are normal with variance 1 / fan-in, so that activations stay finite in 16 bits.
    Tables that are computed rather than learned are the right ones, in float32.
    """
    with torch.device("meta"):
        module = build(arch)
    module = module.to(dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            _fill(name, parameter, generator)
    for name, buffer in list(module.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        value = _computed_buffer(leaf, buffer.numel(), arch).to(device)
        module.get_submodule(owner).register_buffer(leaf, value, persistent=name in module.state_dict())
    return module.eval().requires_grad_(False)


def _fill(name: str, parameter: Tensor, generator: torch.Generator) -> None:
    if name.endswith("timestep_scale_multiplier"):
        parameter.fill_(1000.0)
    elif parameter.dim() > 1:
        fan_in = parameter.numel() // parameter.shape[0]
        parameter.normal_(std=fan_in**-0.5, generator=generator)
    else:
        parameter.fill_(0.0 if name.endswith("bias") else 1.0)


def _computed_buffer(leaf: str, size: int, arch: Architecture) -> Tensor:
    if leaf == "latents_mean":
        return torch.zeros(size)
    if leaf == "latents_std":
        return torch.ones(size)
    if leaf in ("inv_freq", "original_inv_freq"):
        return vision_frequencies(arch["hidden_size"] // arch["num_heads"], 10000.0)
    raise ValueError(f"buffer {leaf!r}: no rule says what it holds, so random weights cannot be built")
