from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from foresight.models.vlm import QwenLatentExtractor


@pytest.fixture(scope="module")
def tower() -> Any:
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

    torch.manual_seed(0)
    config = Qwen2_5_VLVisionConfig(
        depth=3,
        hidden_size=32,
        num_heads=2,
        intermediate_size=48,
        window_size=112,
        fullatt_block_indexes=[1],
        out_hidden_size=40,
    )
    tower = Qwen2_5_VisionTransformerPretrainedModel(config).eval().requires_grad_(False)
    for parameter in tower.parameters():
        parameter.normal_(std=0.1)
    return tower


@pytest.fixture
def extractor(tower: Any) -> QwenLatentExtractor:
    return QwenLatentExtractor(tower, (112, 168), range(9))


def _library_tokens(
    tower: Any, pixel_values: Tensor, grid_thw: tuple[int, int, int]
) -> tuple[Tensor, Tensor]:
    grids = torch.tensor([grid_thw] * len(pixel_values))
    output: Tensor = tower(pixel_values.flatten(0, 1), grids).pooler_output
    return output.view(len(pixel_values), -1, 40)


GRIDS = [(1, 16, 16), (1, 32, 48), (5, 8, 12), (2, 10, 14), (3, 6, 26), (1, 2, 2)]


@pytest.mark.parametrize("grid_thw", GRIDS)
def test_merged_tokens_equal_the_library(
    tower: Any, extractor: QwenLatentExtractor, grid_thw: tuple[int, int, int]
) -> None:
    t, h, w = grid_thw
    pixel_values = torch.randn(2, t * h * w, 1176)
    expected = _library_tokens(tower, pixel_values, grid_thw)
    torch.testing.assert_close(extractor(pixel_values, grid_thw), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("grid_thw", [(2, 16, 16), (2, 10, 14)])
def test_patches_after_a_block_equal_the_library_in_natural_order(
    tower: Any, extractor: QwenLatentExtractor, grid_thw: tuple[int, int, int]
) -> None:
    vision_utils = pytest.importorskip("transformers.vision_utils", reason="a younger transformers")
    t, h, w = grid_thw
    pixel_values = torch.randn(1, t * h * w, 1176)
    captured: list[Tensor] = []
    handles = [
        block.register_forward_hook(lambda _module, _inputs, output: captured.append(output))
        for block in tower.blocks
    ]
    _library_tokens(tower, pixel_values, grid_thw)
    for handle in handles:
        handle.remove()
    window_index, _ = vision_utils.get_vision_window_index(torch.tensor([grid_thw]), 2, 112, 14)
    for index, states in enumerate(captured):
        blocks = states.view(-1, 4, 32)[window_index.argsort()]
        natural = blocks.view(t, h // 2, w // 2, 2, 2, 32).transpose(2, 3).reshape(1, t * h * w, 32)
        ours = extractor(pixel_values, grid_thw, block=index)
        torch.testing.assert_close(ours, natural, rtol=1e-5, atol=1e-5)
    assert torch.equal(extractor(pixel_values, grid_thw, merged=False), ours)


def test_grids_of_the_configured_size(extractor: QwenLatentExtractor) -> None:
    assert extractor.grid_thw == (5, 8, 12)
    assert extractor.token_grid == (5, 4, 6)
    pixel_values = extractor.preprocess(torch.rand(2, 3, 9, 128, 192) * 2 - 1)
    assert pixel_values.shape == (2, 480, 1176)
    assert extractor(pixel_values).shape == (2, 120, 40)


@pytest.mark.parametrize("frames", [8, 9])
def test_patches_equal_the_library_processor(tower: Any, frames: int) -> None:
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    extractor = QwenLatentExtractor(tower, (56, 84), range(frames))
    video = torch.rand(frames, 3, 56, 84)
    output = Qwen2VLVideoProcessor()(
        videos=[video], do_resize=False, do_rescale=False, do_sample_frames=False, return_tensors="pt"
    )
    ours = extractor.preprocess(video.transpose(0, 1)[None] * 2 - 1)
    assert tuple(output["video_grid_thw"][0].tolist()) == extractor.grid_thw
    torch.testing.assert_close(ours[0], output["pixel_values_videos"], rtol=1e-5, atol=1e-5)


def test_resizing_equals_the_library_processor_up_to_its_rounding(tower: Any) -> None:
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    extractor = QwenLatentExtractor(tower, (56, 84), range(2))
    # A smooth picture: on noise the processor's 8-bit intermediate rows overflow and clip.
    smooth = torch.nn.functional.interpolate(torch.rand(2, 3, 4, 6), (128, 192), mode="bilinear")
    video = (smooth * 255).byte()
    area = 56 * 84
    output = Qwen2VLVideoProcessor()(
        videos=[video],
        size={"shortest_edge": area, "longest_edge": area},
        do_sample_frames=False,
        return_tensors="pt",
    )
    ours = extractor.preprocess(video.transpose(0, 1)[None] / 127.5 - 1)
    one_level = 1 / 255 / 0.26
    assert (ours[0] - output["pixel_values_videos"]).abs().max() < one_level


def test_gradients_reach_the_pixels_and_the_weights(tower: Any) -> None:
    extractor = QwenLatentExtractor(tower, (56, 56), (0, 1))
    video = torch.rand(1, 3, 2, 64, 64, requires_grad=True)
    tower.requires_grad_(True)
    extractor(extractor.preprocess(video)).square().sum().backward()
    missing = [name for name, parameter in tower.named_parameters() if parameter.grad is None]
    tower.zero_grad()
    tower.requires_grad_(False)
    assert missing == []
    assert video.grad is not None
    assert video.grad.abs().sum() > 0


def test_tables_made_in_inference_mode_serve_training(tower: Any) -> None:
    extractor = QwenLatentExtractor(tower, (56, 56), (0, 1))
    with torch.inference_mode():
        extractor(extractor.preprocess(torch.zeros(1, 3, 2, 56, 56)))
    video = torch.rand(1, 3, 2, 56, 56, requires_grad=True)
    extractor(extractor.preprocess(video)).sum().backward()
    assert video.grad is not None


def test_bfloat16_stays_close(tower: Any, extractor: QwenLatentExtractor) -> None:
    from copy import deepcopy

    half = QwenLatentExtractor(deepcopy(tower).to(torch.bfloat16), (112, 168), range(9))
    pixel_values = extractor.preprocess(torch.rand(1, 3, 9, 112, 168) * 2 - 1)
    output = half(pixel_values)
    assert output.dtype == torch.bfloat16
    reference = extractor(pixel_values)
    assert (output.float() - reference).norm() / reference.norm() < 0.05


def test_refuses_what_does_not_fit(tower: Any, extractor: QwenLatentExtractor) -> None:
    with pytest.raises(ValueError, match="multiples of 28"):
        QwenLatentExtractor(tower, (100, 168), range(9))
    with pytest.raises(ValueError, match=r"must be \[B, 480, C\]"):
        extractor(torch.zeros(1, 100, 1176))
    with pytest.raises(ValueError, match="blocks 0 to 2"):
        extractor(torch.zeros(1, 480, 1176), block=3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_captures_into_a_cuda_graph(tower: Any) -> None:
    from copy import deepcopy

    extractor = QwenLatentExtractor(deepcopy(tower).cuda(), (112, 168), range(9))
    video = torch.rand(1, 3, 9, 128, 192, device="cuda")
    with torch.no_grad():
        expected = extractor(extractor.preprocess(video))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = extractor(extractor.preprocess(video))
        graph.replay()
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
