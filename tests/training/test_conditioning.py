"""The transformer's own conditioning and the velocity that it is trained on."""

import pytest
import torch

from foresight.models.architectures import build_transformer
from foresight.models.denoiser import LTXDenoiser
from foresight.training.conditioning import ConditioningEncoder, VelocityTask, sample_sigmas, velocity

TINY = {
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "cross_attention_dim": 64,
    "caption_channels": 48,
}


def encoder() -> ConditioningEncoder:
    return ConditioningEncoder(2 * 2 * 3, width=32, num_queries=5, output_dim=48)


def test_tokens_depend_on_the_latents_and_are_noisy_only_while_training() -> None:
    torch.manual_seed(0)
    model, latents = encoder(), torch.randn(2, 128, 2, 2, 3)
    assert model(latents).shape == (2, 5, 48)
    assert not torch.equal(model(latents), model(latents))
    model.eval()
    assert torch.equal(model(latents), model(latents))
    assert not torch.allclose(model(latents)[0], model(latents)[1])


def test_sigmas_start_at_one_for_the_share_asked_for() -> None:
    sigmas = sample_sigmas(4000, at_one=0.25, device=torch.device("cpu"))
    assert (sigmas[:1000] == 1).all()
    assert sigmas.min() >= 0
    # Shifted by two, the mean of the rest is 2 - 2 ln 2 instead of a half.
    assert sigmas[1000:].mean() == pytest.approx(0.614, abs=0.03)


def test_velocity_is_that_of_the_decoder_that_will_use_the_weights() -> None:
    torch.manual_seed(0)
    transformer = build_transformer(TINY).eval()
    latents, tokens = torch.randn(2, 128, 2, 2, 3), torch.randn(2, 5, 48)
    sigmas = torch.tensor([1.0, 0.4])
    with torch.no_grad():
        trained = velocity(transformer, latents, sigmas, tokens, 24.0).transpose(1, 2).reshape(latents.shape)
        denoiser = LTXDenoiser(transformer, fps=24.0, causal_positions=False)
        served = denoiser(latents, sigmas, denoiser.condition(tokens))
    torch.testing.assert_close(trained, served, atol=1e-5, rtol=1e-4)


def test_the_task_trains_both_networks() -> None:
    torch.manual_seed(0)
    transformer, model = build_transformer(TINY), encoder()
    task = VelocityTask(transformer, model, lambda batch: torch.randn(batch, 128, 2, 2, 3), 10, 24.0)
    task()["loss"].backward()
    assert model.queries.grad is not None
    assert transformer.proj_in.weight.grad is not None


def test_decoded_estimates_count_where_there_is_a_decoder() -> None:
    torch.manual_seed(0)
    seen: list[torch.Tensor] = []

    def decode(latents: torch.Tensor) -> torch.Tensor:
        seen.append(latents)
        return latents

    transformer, model = build_transformer(TINY), encoder()
    clips = torch.randn(8, 128, 2, 2, 3)
    task = VelocityTask(transformer, model, lambda batch: clips[:batch], 8, 24.0, decode)
    scalars = {name: value.detach() for name, value in task().items()}
    wanted, estimate = (latents.detach() for latents in seen)
    torch.testing.assert_close(wanted, clips[:2])
    torch.testing.assert_close(scalars["at_one"], (estimate - wanted).square().mean())
    assert scalars["loss"] > scalars["decoded"] > 0
