"""The encoders learn from pixels and scenes, never from the decoder's latents."""

import pytest
import torch

from foresight.models.architectures import build_dino, build_vlm
from foresight.models.dino import DinoExtractor
from foresight.models.vlm import QwenLatentExtractor
from foresight.training.clips import ClipPool
from foresight.training.pretraining import MaskedPatchTask, SceneTask


@pytest.fixture(scope="module")
def pool() -> ClipPool:
    return ClipPool(8, device="cpu", seed=0, size=(32, 64))


def tiny_dino() -> DinoExtractor:
    arch = {"img_size": 28, "patch_size": 14, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 0}
    return DinoExtractor(build_dino(arch), (28, 28), (0, 8))


def test_hidden_patches_do_not_reach_the_encoder(pool: ClipPool, monkeypatch: pytest.MonkeyPatch) -> None:
    task = MaskedPatchTask(tiny_dino(), pool, 8)
    seen: list[torch.Tensor] = []
    encode = task.dino.forward
    monkeypatch.setattr(task.dino, "forward", lambda pixels: (seen.append(pixels), encode(pixels))[1])
    torch.manual_seed(0)
    scalars = task()
    patches = torch.nn.functional.pixel_unshuffle(seen[0].flatten(0, 1), 14).flatten(2)
    painted_over = (patches == 0).all(1)
    assert 0.05 < painted_over.float().mean() < 0.4
    assert {"loss", "hidden", "visible"} <= scalars.keys()


def test_a_constant_answer_errs_equally_on_hidden_and_visible_patches(pool: ClipPool) -> None:
    torch.manual_seed(0)
    task = MaskedPatchTask(tiny_dino(), pool, 64)
    torch.nn.init.zeros_(task.head.weight)
    torch.nn.init.zeros_(task.head.bias)
    scalars = task()
    assert scalars["hidden"].item() == pytest.approx(scalars["visible"].item(), rel=0.5)


def test_merged_tokens_are_asked_for_their_own_pixels(pool: ClipPool) -> None:
    arch = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "out_hidden_size": 24}
    vlm = QwenLatentExtractor(build_vlm({**arch, "fullatt_block_indexes": [0]}), (28, 56), tuple(range(9)))
    task = SceneTask(vlm, 24, pool, 3)
    assert task.pixels.out_features == 4 * 2 * 3 * 14 * 14
    torch.manual_seed(0)
    scalars = task()
    scalars["loss"].backward()
    assert vlm.tower.patch_embed.proj.weight.grad is not None
    assert scalars["scene"] > 0
