from __future__ import annotations

from typing import Any

import pytest
import torch

from foresight.models.dino import DinoExtractor


@pytest.fixture(scope="module")
def model() -> Any:
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    return VisionTransformer(
        img_size=56,
        patch_size=14,
        embed_dim=32,
        depth=2,
        num_heads=2,
        num_classes=0,
        global_pool="token",
        init_values=1.0,
        reg_tokens=2,
    ).eval()


def test_tokens_are_those_of_each_frame_without_prefix(model: Any) -> None:
    extractor = DinoExtractor(model, (56, 56), (0, 4, 8))
    video = torch.rand(2, 3, 9, 64, 96) * 2 - 1
    pixel_values = extractor.preprocess(video)
    assert pixel_values.shape == (2, 3, 3, 56, 56)
    with torch.no_grad():
        tokens = extractor(pixel_values)
        alone = model.forward_features(pixel_values[1, 2][None])[0, 3:]
    assert extractor.token_grid == (3, 4, 4)
    assert tokens.shape == (2, 48, 32)
    torch.testing.assert_close(tokens[1, 32:], alone, rtol=1e-5, atol=1e-5)


def test_pixels_equal_the_library_transform(model: Any) -> None:
    import numpy as np
    from PIL import Image
    from timm.data.transforms_factory import create_transform

    extractor = DinoExtractor(model, (56, 56), (0,))
    smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 4, 6), (64, 96), mode="bilinear")
    image = (smooth[0].permute(1, 2, 0) * 255).byte().contiguous().numpy()
    transform = create_transform(
        56, interpolation="bicubic", crop_pct=1.0, crop_mode="squash", is_training=False
    )
    expected = transform(Image.fromarray(np.asarray(image)))
    video = torch.from_numpy(image).permute(2, 0, 1)[None, :, None] / 127.5 - 1
    one_level = 1 / 255 / 0.224
    assert (extractor.preprocess(video)[0, 0] - expected).abs().max() < 1.5 * one_level


def test_gradients_reach_the_pixels(model: Any) -> None:
    extractor = DinoExtractor(model, (56, 56), (0, 1))
    video = torch.rand(1, 3, 2, 64, 64, requires_grad=True)
    extractor(extractor.preprocess(video)).square().sum().backward()
    assert video.grad is not None
    assert video.grad.abs().sum() > 0


def test_refuses_another_size(model: Any) -> None:
    with pytest.raises(ValueError, match="built for 56x56"):
        DinoExtractor(model, (70, 70), (0,))
    with pytest.raises(ValueError, match="whole patches of 14x14"):
        DinoExtractor(model, (60, 56), (0,))
