from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from foresight.models.architectures import build_transformer, build_vae
from foresight.models.decoder import LTXDecoder
from foresight.models.presets import STACKS

from .towers import TRANSFORMER, VAE, randomize

CONFIG = replace(STACKS["nano"], causal_positions=True)
TIMED = replace(CONFIG, decode_timestep=0.05, decode_noise_scale=0.025)


def _vae(**changes: Any) -> Any:
    vae = randomize(build_vae({**VAE, **changes}))
    vae.latents_mean.copy_(torch.linspace(-1, 1, 8))
    vae.latents_std.copy_(torch.linspace(0.5, 2, 8))
    return vae


@pytest.fixture(scope="module")
def transformer() -> Any:
    return randomize(build_transformer(TRANSFORMER))


@pytest.fixture(scope="module")
def decoder(transformer: Any) -> LTXDecoder:
    return LTXDecoder(transformer, _vae(), CONFIG)


@pytest.fixture(scope="module")
def timed_decoder(transformer: Any) -> LTXDecoder:
    return LTXDecoder(transformer, _vae(timestep_conditioning=True), TIMED)


def test_denoising_is_euler_in_float32(decoder: LTXDecoder) -> None:
    noise, tokens = torch.randn(1, 8, 2, 2, 3), torch.randn(1, 7, 24)
    conditioning = decoder.condition(tokens)
    expected = noise
    for sigma, sigma_next in ((1.0, 0.6), (0.6, 0.0)):
        expected = expected + (sigma_next - sigma) * decoder.velocity(expected, sigma, conditioning)
    latents = decoder.denoise(tokens, noise, (1.0, 0.6, 0.0))
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, expected)
    torch.testing.assert_close(decoder.denoise(conditioning, noise, (1.0, 0.6, 0.0)), expected)


def test_denoising_equals_the_library_scheduler(decoder: LTXDecoder) -> None:
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    noise, tokens = torch.randn(1, 8, 2, 2, 3), torch.randn(1, 7, 24)
    sigmas = (1.0, 0.975, 0.9094, 0.725)
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=list(sigmas))
    conditioning = decoder.condition(tokens)
    latents = noise
    for timestep in scheduler.timesteps:
        velocity = decoder.velocity(latents, timestep / 1000, conditioning)
        latents = scheduler.step(velocity, timestep, latents).prev_sample
    ours = decoder.denoise(tokens, noise, (*sigmas, 0.0))
    torch.testing.assert_close(ours, latents, rtol=1e-4, atol=1e-5)


def test_given_latents_are_kept_and_steer_the_others(decoder: LTXDecoder) -> None:
    noise, tokens = torch.randn(1, 8, 3, 2, 3), torch.randn(1, 7, 24)
    given = torch.randn(1, 8, 1, 2, 3)
    latents = decoder.denoise(tokens, noise, (1.0, 0.5, 0.0), given=given)
    assert torch.equal(latents[:, :, :1], given)
    other = decoder.denoise(tokens, noise, (1.0, 0.5, 0.0), given=-given)
    assert (latents[:, :, 1:] - other[:, :, 1:]).abs().max() > 1e-5


def test_decoding_equals_the_library(decoder: LTXDecoder) -> None:
    from diffusers.pipelines.ltx.pipeline_ltx import LTXPipeline

    latents = torch.randn(1, 8, 2, 2, 3)
    vae = decoder.vae
    states = LTXPipeline._denormalize_latents(latents, vae.latents_mean, vae.latents_std, 1.0)
    expected = vae.decode(states).sample
    video = decoder.decode(latents, clamp=False)
    assert video.shape == (1, 3, 9, 64, 96)
    torch.testing.assert_close(video, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(decoder.decode(latents), expected.clamp(-1, 1), rtol=1e-5, atol=1e-5)


def test_decoding_noise_and_timestep_equal_the_library(timed_decoder: LTXDecoder) -> None:
    from diffusers.pipelines.ltx.pipeline_ltx import LTXPipeline

    latents = torch.randn(2, 8, 2, 2, 3)
    vae = timed_decoder.vae
    noise = timed_decoder.decode_noise(9, 4, tuple(latents.shape))
    assert noise is not None
    states = LTXPipeline._denormalize_latents(latents, vae.latents_mean, vae.latents_std, 1.0)
    states = (1 - 0.025) * states + 0.025 * noise
    expected = vae.decode(states, torch.tensor([0.05, 0.05])).sample
    video = timed_decoder.decode(latents, seed=9, first_index=4, clamp=False)
    torch.testing.assert_close(video, expected, rtol=1e-5, atol=1e-5)
    passed = timed_decoder.decode(latents, noise=noise, clamp=False)
    torch.testing.assert_close(passed, expected, rtol=1e-5, atol=1e-5)
    elsewhere = timed_decoder.decode(latents, seed=9, first_index=5, clamp=False)
    assert (elsewhere - expected).abs().max() > 1e-6


def test_noise_is_keyed_by_absolute_latent_index(decoder: LTXDecoder) -> None:
    first = decoder.noise(1, 0, (1, 8, 2, 2, 3))
    second = decoder.noise(1, 1, (1, 8, 2, 2, 3))
    assert torch.equal(first[:, :, 1], second[:, :, 0])
    assert decoder.decode_noise(1, 0, (1, 8, 2, 2, 3)) is None


def test_refuses_an_autoencoder_whose_timestep_is_unknown(transformer: Any) -> None:
    with pytest.raises(ValueError, match="decode_timestep None"):
        LTXDecoder(transformer, _vae(timestep_conditioning=True), CONFIG)
