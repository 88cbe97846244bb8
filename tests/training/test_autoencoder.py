"""The video autoencoder starts centred, and its latents' statistics land in its own buffers."""

import pytest
import torch

from foresight.models.architectures import build_vae
from foresight.models.latents import LTXLatentExtractor
from foresight.models.presets import ARCHITECTURES
from foresight.training.autoencoder import (
    LOGVAR_START,
    AutoencoderTask,
    DecoderTask,
    initialise,
    measure_latents,
)
from foresight.training.clips import ClipPool


@pytest.fixture(scope="module")
def pool() -> ClipPool:
    return ClipPool(32, device="cpu", seed=0, size=(32, 64))


@pytest.fixture(scope="module")
def vae(pool: ClipPool) -> torch.nn.Module:
    torch.manual_seed(0)
    model = build_vae(ARCHITECTURES["nano"]["vae"])
    initialise(model, pool.sample(16)[0])
    return model


def test_a_fresh_autoencoder_answers_in_colour(vae: torch.nn.Module, pool: ClipPool) -> None:
    with torch.no_grad():
        mean, logvar = vae.encoder(pool.sample(16)[0]).chunk(2, 1)
        answer = vae.decoder(mean)
    assert logvar.mean() == pytest.approx(LOGVAR_START, abs=0.5)
    assert mean.std() == pytest.approx(1.0, abs=0.3)
    chroma = answer[:, 0] - answer[:, 1]
    assert chroma.std() > 0.1


def test_measured_latents_are_standardised(vae: torch.nn.Module, pool: ClipPool) -> None:
    torch.manual_seed(0)
    measure_latents(vae, pool, clips=32)
    with torch.no_grad():
        latents = LTXLatentExtractor(vae)(pool.sample(32)[0])
    assert latents.mean().abs() < 0.2
    assert latents.std() == pytest.approx(1.0, abs=0.2)


def test_the_task_reports_quality_and_trains_both_halves(vae: torch.nn.Module, pool: ClipPool) -> None:
    scalars = AutoencoderTask(vae, pool, 2)()
    scalars["loss"].backward()
    assert 0 < scalars["psnr_db"] < 30
    assert vae.encoder.conv_in.conv.weight.grad is not None
    assert vae.decoder.conv_out.conv.weight.grad is not None


def test_the_decoder_trains_alone_and_sees_the_encoders_latents(vae: torch.nn.Module, pool: ClipPool) -> None:
    vae.encoder.requires_grad_(False)
    vae.zero_grad()
    scalars = DecoderTask(vae, pool, 2)()
    scalars["loss"].backward()
    assert vae.encoder.conv_in.conv.weight.grad is None
    assert vae.decoder.conv_out.conv.weight.grad is not None
    assert 0 < scalars["psnr_db"] < 30
