from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from foresight.models.architectures import (
    build_dino,
    build_random,
    build_transformer,
    build_vae,
    build_vlm,
)
from foresight.models.presets import ARCHITECTURES

from .towers import DINO, TRANSFORMER, VAE, VLM

BUILDERS: Mapping[str, Callable[[Mapping[str, Any]], nn.Module]] = {
    "vlm": build_vlm,
    "dino": build_dino,
    "transformer": build_transformer,
    "vae": build_vae,
}
TINY: Mapping[str, Mapping[str, Any]] = {"vlm": VLM, "dino": DINO, "transformer": TRANSFORMER, "vae": VAE}


def _parameters(part: str, arch: Mapping[str, Any]) -> int:
    with torch.device("meta"):
        module = BUILDERS[part](arch)
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("part", "millions"), [("vlm", 676.550144), ("transformer", 1923.385472), ("vae", 1246.913522)]
)
def test_full_sizes_are_those_of_the_real_checkpoints(part: str, millions: float) -> None:
    assert _parameters(part, ARCHITECTURES["full"][part]) == round(millions * 1e6)


def test_full_dino_is_vit_large() -> None:
    # The published checkpoint stands at 518 pixels: 1,370 positions instead of 257.
    arch = ARCHITECTURES["full"]["dino"]
    assert _parameters("dino", {**arch, "img_size": 518}) == 304_367_616
    assert _parameters("dino", arch) == 304_367_616 - (1370 - 257) * 1024


@pytest.mark.parametrize(("part", "millions"), [("vlm", 4.6), ("dino", 2.8), ("vae", 6.9)])
def test_nano_is_nano(part: str, millions: float) -> None:
    assert _parameters(part, ARCHITECTURES["nano"][part]) / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize("stack", ["nano", "full"])
def test_autoencoders_compress_alike(stack: str) -> None:
    with torch.device("meta"):
        vae: Any = build_vae(ARCHITECTURES[stack]["vae"])
    assert (vae.spatial_compression_ratio, vae.temporal_compression_ratio) == (32, 8)


@pytest.mark.parametrize("part", BUILDERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_random_weights_are_finite_repeatable_and_typed(part: str, dtype: torch.dtype) -> None:
    first, second = (
        build_random(BUILDERS[part], TINY[part], device=torch.device("cpu"), dtype=dtype) for _ in range(2)
    )
    states = second.state_dict()
    for name, parameter in first.named_parameters():
        assert parameter.dtype == dtype
        assert parameter.isfinite().all()
        assert torch.equal(parameter, states[name])
        assert not parameter.requires_grad
    assert not first.training


def test_random_weights_keep_computed_tables() -> None:
    device = torch.device("cpu")
    tower = build_random(build_vlm, VLM, device=device, dtype=torch.bfloat16)
    reference = dict(build_vlm(VLM).named_buffers())
    for name, buffer in tower.named_buffers():
        assert torch.equal(buffer, reference[name])
    vae = build_random(build_vae, VAE, device=device, dtype=torch.bfloat16)
    assert vae.latents_mean.dtype == vae.latents_std.dtype == torch.float32
    assert {"latents_mean", "latents_std"} <= set(vae.state_dict())
    assert vae.latents_std.eq(1).all()
