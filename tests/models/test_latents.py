from __future__ import annotations

from typing import Any

import pytest
import torch

from foresight.models.architectures import build_vae
from foresight.models.latents import LTXLatentExtractor, denormalize_latents

from .towers import VAE, randomize


@pytest.fixture(scope="module")
def vae() -> Any:
    vae = randomize(build_vae({**VAE, "scaling_factor": 0.5}))
    vae.latents_mean.copy_(torch.linspace(-1, 1, 8))
    vae.latents_std.copy_(torch.linspace(0.5, 2, 8))
    return vae


def test_latents_equal_the_library_pipeline(vae: Any) -> None:
    from diffusers.pipelines.ltx.pipeline_ltx import LTXPipeline

    video = torch.rand(2, 3, 9, 64, 96) * 2 - 1
    latents = LTXLatentExtractor(vae)(video)
    mode = vae.encode(video).latent_dist.mode()
    expected = LTXPipeline._normalize_latents(mode, vae.latents_mean, vae.latents_std, 0.5)
    assert latents.shape == (2, 8, 2, 2, 3)
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(denormalize_latents(latents, vae), mode, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 3, 8, 64, 64), (1, 3, 9, 60, 64), (1, 3, 9, 64, 65)])
def test_refuses_sizes_that_would_be_floored(vae: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="8k\\+1 frames and sides in multiples of 32"):
        LTXLatentExtractor(vae)(torch.zeros(shape))
