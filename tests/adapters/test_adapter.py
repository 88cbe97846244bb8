"""What holds for every architecture: shapes, masks, batches, gradients, types and refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from foresight.adapters import Adapter, AdapterConfig

ALL = ["query", "cross_attention", "linear", "mlp", "bottleneck", "lora", "perceiver"]
LATENT = ["cross_attention", "linear", "mlp"]
POSITIONAL = ["query", "cross_attention", "perceiver"]

MakeAdapter = Callable[[str], Adapter]


@pytest.mark.parametrize("architecture", ALL)
def test_output_has_the_shape_that_the_decoder_takes(
    architecture: str, small_adapter: MakeAdapter, features: Any
) -> None:
    output = small_adapter(architecture)(features.vlm, features.dino, **features.grids())
    assert output.shape == ((2, 12, 1, 2, 3) if architecture in LATENT else (2, 5, 12))
    assert output.is_contiguous()


@pytest.mark.parametrize("architecture", ALL)
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30])
def test_padding_of_any_content_never_leaks(
    architecture: str, garbage: float, small_adapter: MakeAdapter, features: Any
) -> None:
    adapter = small_adapter(architecture)
    lengths = torch.tensor([24, 7])
    clean = features.vlm.clone()
    clean[1, 7:] = 0.0
    dirty = torch.cat([clean, torch.zeros(2, 3, clean.shape[2])], dim=1)
    dirty[0, 24:] = garbage
    dirty[1, 7:] = garbage
    expected = adapter(clean, features.dino, vlm_lengths=lengths, **features.grids())
    output = adapter(dirty, features.dino, vlm_lengths=lengths, **features.grids())
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)
    output.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in adapter.parameters())


@pytest.mark.parametrize("architecture", ["query", "bottleneck", "lora", "perceiver"])
def test_a_length_means_the_same_as_a_shorter_sequence(
    architecture: str, small_adapter: MakeAdapter, features: Any
) -> None:
    adapter = small_adapter(architecture)
    masked = adapter(features.vlm, features.dino, vlm_lengths=torch.tensor([9, 9]))
    torch.testing.assert_close(masked, adapter(features.vlm[:, :9], features.dino), rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", ALL)
def test_full_lengths_change_nothing(architecture: str, small_adapter: MakeAdapter, features: Any) -> None:
    adapter = small_adapter(architecture)
    plain = adapter(features.vlm, features.dino, **features.grids())
    masked = adapter(features.vlm, features.dino, vlm_lengths=torch.tensor([24, 24]), **features.grids())
    torch.testing.assert_close(masked, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", ALL)
def test_a_row_without_vlm_tokens_is_finite(
    architecture: str, small_adapter: MakeAdapter, features: Any
) -> None:
    adapter = small_adapter(architecture)
    output = adapter(features.vlm, features.dino, vlm_lengths=torch.tensor([0, 24]), **features.grids())
    assert output.isfinite().all()


@pytest.mark.parametrize("architecture", ALL)
@pytest.mark.parametrize("lengths", [None, [24, 11]])
def test_clips_of_a_batch_do_not_touch_each_other(
    architecture: str, lengths: list[int] | None, small_adapter: MakeAdapter, features: Any
) -> None:
    adapter = small_adapter(architecture)
    both = None if lengths is None else torch.tensor(lengths)
    batch = adapter(features.vlm, features.dino, vlm_lengths=both, **features.grids())
    for row in (0, 1):
        one = None if both is None else both[row : row + 1]
        alone = adapter(
            features.vlm[row : row + 1], features.dino[row : row + 1], vlm_lengths=one, **features.grids()
        )
        torch.testing.assert_close(batch[row : row + 1], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", ALL)
@pytest.mark.parametrize("stream", ["vlm", "dino"])
def test_both_streams_are_read(
    architecture: str, stream: str, small_adapter: MakeAdapter, features: Any
) -> None:
    adapter = small_adapter(architecture)
    before = adapter(features.vlm, features.dino, **features.grids())
    getattr(features, stream).add_(torch.randn_like(getattr(features, stream)))
    assert (adapter(features.vlm, features.dino, **features.grids()) - before).abs().max() > 1e-3


@pytest.mark.parametrize("architecture", POSITIONAL)
def test_order_matters_only_with_positions(
    architecture: str, small_adapter: MakeAdapter, features: Any
) -> None:
    adapter = small_adapter(architecture)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, std=0.3)
    shuffled = features.vlm[:, torch.randperm(24)]
    torch.testing.assert_close(
        adapter(shuffled, features.dino), adapter(features.vlm, features.dino), rtol=1e-3, atol=1e-4
    )
    placed = adapter(features.vlm, features.dino, **features.grids())
    moved = adapter(shuffled, features.dino, **features.grids())
    assert (placed - moved).abs().max() > 1e-2


@pytest.mark.parametrize("architecture", ALL)
def test_gradient_reaches_every_parameter(
    architecture: str, small_adapter: MakeAdapter, features: Any
) -> None:
    adapter = small_adapter(architecture)
    adapter(features.vlm, features.dino, **features.grids()).square().sum().backward()
    idle = [
        name
        for name, parameter in adapter.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert idle == []


@pytest.mark.parametrize("architecture", ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_follows_fp32(
    architecture: str, dtype: torch.dtype, small_adapter: MakeAdapter, features: Any
) -> None:
    adapter = small_adapter(architecture)
    lengths = torch.tensor([24, 9])
    expected = adapter(features.vlm, features.dino, vlm_lengths=lengths, **features.grids())
    adapter.to(dtype)
    output = adapter(features.vlm.to(dtype), features.dino.to(dtype), vlm_lengths=lengths, **features.grids())
    assert output.dtype == dtype
    torch.testing.assert_close(output.float(), expected, rtol=0, atol=0.1)


@pytest.mark.parametrize("architecture", ALL)
def test_autocast_takes_features_of_another_type(
    architecture: str, small_adapter: MakeAdapter, features: Any
) -> None:
    adapter = small_adapter(architecture)
    expected = adapter(features.vlm, features.dino, **features.grids())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = adapter(features.vlm.bfloat16(), features.dino.bfloat16(), **features.grids())
    torch.testing.assert_close(output.float(), expected, rtol=0, atol=0.1)


@pytest.mark.parametrize("architecture", ALL)
def test_wrong_input_is_refused_in_one_sentence(
    architecture: str, small_adapter: MakeAdapter, features: Any
) -> None:
    adapter, vlm, dino, grids = small_adapter(architecture), features.vlm, features.dino, features.grids()
    refused: list[tuple[str, tuple[Any, Any], dict[str, Any]]] = [
        (r"vlm_hidden_states of shape \(2, 24, 23\).*24\]", (vlm[..., 1:], dino), grids),
        (r"dino_hidden_states of shape \(16, 16\)", (vlm, dino[0]), grids),
        (r"batches of 1 and 2", (vlm[:1], dino), grids),
        (r"dino_hidden_states has no tokens", (vlm, dino[:, :0]), {**grids, "dino_grid": (1, 4, 4)}),
        (r"vlm_grid \(2, 3, 3\): has 18 tokens", (vlm, dino), {**grids, "vlm_grid": (2, 3, 3)}),
        (r"dino_grid \(1, 4, 3\): has 12 tokens", (vlm, dino), {**grids, "dino_grid": (1, 4, 3)}),
        (r"vlm_lengths 25", (vlm, dino), {**grids, "vlm_lengths": torch.tensor([25, 3])}),
        (r"vlm_lengths -1", (vlm, dino), {**grids, "vlm_lengths": torch.tensor([3, -1])}),
        (r"vlm_lengths of shape \(3,\)", (vlm, dino), {**grids, "vlm_lengths": torch.tensor([3, 1, 2])}),
        (r"vlm_lengths of type torch.float32", (vlm, dino), {**grids, "vlm_lengths": torch.ones(2)}),
    ]
    for message, inputs, options in refused:
        with pytest.raises(ValueError, match=message) as caught:
            adapter(*inputs, **options)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("architecture", LATENT[1:])
def test_a_probe_without_grids_is_refused(
    architecture: str, small_adapter: MakeAdapter, features: Any
) -> None:
    with pytest.raises(ValueError, match="needs both grids"):
        small_adapter(architecture)(features.vlm, features.dino)


@pytest.mark.parametrize("architecture", POSITIONAL)
def test_a_grid_beyond_the_learned_positions_is_refused(
    architecture: str, small_adapter: MakeAdapter, features: Any
) -> None:
    with pytest.raises(ValueError, match=r"grid \(4, 3, 2\).*max_grid \(3, 4, 5\)"):
        small_adapter(architecture)(features.vlm, features.dino, vlm_grid=(4, 3, 2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("architecture", ALL)
def test_forward_can_be_captured_in_a_cuda_graph(
    architecture: str, small_adapter: MakeAdapter, features: Any
) -> None:
    adapter = small_adapter(architecture).cuda()
    vlm, dino, lengths = features.vlm.cuda(), features.dino.cuda(), torch.tensor([24, 9]).cuda()
    with torch.no_grad():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            adapter(vlm, dino, vlm_lengths=lengths, **features.grids())
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = adapter(vlm, dino, vlm_lengths=lengths, **features.grids())
        vlm.normal_()
        lengths.fill_(5)
        graph.replay()
        expected = adapter(vlm, dino, vlm_lengths=lengths, **features.grids())
    torch.testing.assert_close(output, expected)


def test_configuration_stays_with_the_adapter(
    small_adapter: MakeAdapter, small_config: Callable[[str], AdapterConfig]
) -> None:
    for architecture in ALL:
        assert small_adapter(architecture).config == small_config(architecture)
