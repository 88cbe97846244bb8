from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from foresight.models.architectures import build_transformer
from foresight.models.denoiser import LTXDenoiser

from .towers import TRANSFORMER, randomize

FPS = 24.0
# The second has an inner size that is not a multiple of 6, as the real one; the library pads its rotary
# tables.
ARCHITECTURES = [
    {**TRANSFORMER, "attention_head_dim": 24, "cross_attention_dim": 48},
    TRANSFORMER,
]


@pytest.fixture(scope="module", params=ARCHITECTURES, ids=["48", "32"])
def transformer(request: pytest.FixtureRequest) -> Any:
    return randomize(build_transformer(request.param))


def _library_velocity(
    transformer: Any, latents: Tensor, timestep: Tensor, tokens: Tensor, *, causal: bool
) -> Tensor:
    from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXConditionPipeline

    batch, _, frames, height, width = latents.shape
    positions: dict[str, Any] = {"rope_interpolation_scale": (8 / FPS, 32, 32)}
    if causal:
        ids = LTXConditionPipeline._prepare_video_ids(batch, frames, height, width)
        coordinates = LTXConditionPipeline._scale_video_ids(ids, 32, 8).float()
        coordinates[:, 0] = coordinates[:, 0] * (1.0 / FPS)
        positions = {"video_coords": coordinates}
    output: Tensor = transformer(
        hidden_states=latents.flatten(2).transpose(1, 2),
        encoder_hidden_states=tokens,
        timestep=timestep,
        encoder_attention_mask=None,
        num_frames=frames,
        height=height,
        width=width,
        **positions,
    ).sample
    return output.transpose(1, 2).reshape(latents.shape)


@pytest.mark.parametrize("causal", [False, True])
def test_velocity_equals_the_library(transformer: Any, causal: bool) -> None:
    denoiser = LTXDenoiser(transformer, fps=FPS, causal_positions=causal)
    latents, tokens = torch.randn(2, 8, 3, 2, 5), torch.randn(2, 7, 24)
    expected = _library_velocity(transformer, latents, torch.full((2,), 725.0), tokens, causal=causal)
    ours = denoiser(latents, 0.725, denoiser.condition(tokens))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_positions_matter(transformer: Any) -> None:
    latents, tokens = torch.randn(1, 8, 3, 2, 5), torch.randn(1, 7, 24)
    causal, plain = (LTXDenoiser(transformer, fps=FPS, causal_positions=causal) for causal in (True, False))
    difference = causal(latents, 0.5, causal.condition(tokens)) - plain(latents, 0.5, plain.condition(tokens))
    assert difference.abs().max() > 1e-4


@pytest.mark.parametrize("causal", [False, True])
def test_given_frames_are_told_to_be_clean(transformer: Any, causal: bool) -> None:
    denoiser = LTXDenoiser(transformer, fps=FPS, causal_positions=causal)
    latents, tokens = torch.randn(2, 8, 3, 2, 5), torch.randn(2, 7, 24)
    timestep = torch.full((2, 30), 900.0)
    timestep[:, :10] = 0.0
    expected = _library_velocity(transformer, latents, timestep, tokens, causal=causal)
    ours = denoiser(latents, 0.9, denoiser.condition(tokens), given_frames=1)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_sigma_may_be_a_tensor_of_one_or_one_a_clip(transformer: Any) -> None:
    denoiser = LTXDenoiser(transformer, fps=FPS, causal_positions=True)
    latents, tokens = torch.randn(2, 8, 2, 2, 3), torch.randn(2, 7, 24)
    conditioning = denoiser.condition(tokens)
    number = denoiser(latents, 0.5, conditioning)
    torch.testing.assert_close(denoiser(latents, torch.tensor(0.5), conditioning), number)
    each = denoiser(latents, torch.tensor([0.5, 0.1]), conditioning)
    torch.testing.assert_close(each[0], number[0])
    second = denoiser(latents[1:], 0.1, denoiser.condition(tokens[1:]))
    torch.testing.assert_close(each[1:], second)


def test_conditioning_has_keys_and_values_of_every_layer(transformer: Any) -> None:
    denoiser = LTXDenoiser(transformer, fps=FPS, causal_positions=True)
    conditioning = denoiser.condition(torch.randn(2, 7, 24))
    assert len(conditioning.keys) == len(conditioning.values) == 2
    assert {tuple(states.shape[:3]) for states in conditioning.keys + conditioning.values} == {(2, 2, 7)}


def test_gradients_reach_conditioning_and_weights(transformer: Any) -> None:
    denoiser = LTXDenoiser(transformer, fps=FPS, causal_positions=True)
    with torch.inference_mode():
        denoiser(torch.zeros(1, 8, 2, 2, 3), 0.5, denoiser.condition(torch.zeros(1, 7, 24)))
    tokens = torch.randn(1, 7, 24, requires_grad=True)
    transformer.requires_grad_(True)
    denoiser(torch.randn(1, 8, 2, 2, 3), 0.5, denoiser.condition(tokens)).square().sum().backward()
    missing = [name for name, parameter in transformer.named_parameters() if parameter.grad is None]
    transformer.zero_grad()
    transformer.requires_grad_(False)
    assert missing == []
    assert tokens.grad is not None
    assert tokens.grad.abs().sum() > 0


def test_refuses_to_be_given_everything(transformer: Any) -> None:
    denoiser = LTXDenoiser(transformer, fps=FPS, causal_positions=True)
    conditioning = denoiser.condition(torch.randn(1, 7, 24))
    with pytest.raises(ValueError, match="given_frames 2: must leave some of 2"):
        denoiser(torch.randn(1, 8, 2, 2, 3), 0.5, conditioning, given_frames=2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_captures_into_a_cuda_graph(transformer: Any) -> None:
    from copy import deepcopy

    denoiser = LTXDenoiser(deepcopy(transformer).cuda(), fps=FPS, causal_positions=True)
    latents = torch.randn(1, 8, 2, 2, 3, device="cuda")
    sigma = torch.tensor(0.5, device="cuda")
    with torch.no_grad():
        conditioning = denoiser.condition(torch.randn(1, 7, 24, device="cuda"))
        denoiser(latents, sigma, conditioning)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = denoiser(latents, sigma, conditioning)
        sigma.fill_(0.25)
        graph.replay()
        expected = denoiser(latents, 0.25, conditioning)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
