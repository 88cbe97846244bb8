"""Checkpoints as the hub holds them, written tiny and read through the lines that read the real ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import foresight.models.loading as loading
from foresight.models.architectures import build_transformer, build_vae, build_vlm
from foresight.models.errors import StackError
from foresight.models.loading import LoadedPart, load_dino, load_transformer, load_vae, load_vlm
from foresight.models.repository import locate

from .original_layout import original_transformer_name_of, original_vae_name_of
from .towers import DINO, TRANSFORMER, VAE, VLM, randomize

CPU = torch.device("cpu")
VAE_095 = {
    **VAE,
    "block_out_channels": [8, 8, 8, 8, 8],
    "down_block_types": ["LTXVideo095DownBlock3D"] * 4,
    "spatio_temporal_scaling": [True] * 4,
    "layers_per_block": [1, 2, 1, 1, 1],
    "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
    "decoder_block_out_channels": [8, 16, 32],
    "upsample_factor": [2] * 3,
    "timestep_conditioning": True,
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}


def _assert_equal(part: LoadedPart, expected: torch.nn.Module) -> None:
    states = part.module.state_dict()
    assert set(states) == set(expected.state_dict())
    assert all(torch.equal(states[name], tensor) for name, tensor in expected.state_dict().items())


def _save_shards(folder: Path, shards: Mapping[str, Mapping[str, Tensor]]) -> None:
    weight_map = {}
    for name, tensors in shards.items():
        save_file(dict(tensors), folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, name))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("prefix", ["visual.", "model.visual."])
def test_only_the_vision_tower_of_a_qwen_checkpoint_is_read(prefix: str, tmp_path: Path) -> None:
    tower = randomize(build_vlm(VLM))
    tensors = {f"{prefix}{name}": tensor for name, tensor in tower.state_dict().items()}
    names = list(tensors)
    language = {"model.layers.0.self_attn.q_proj.weight": torch.ones(4), "lm_head.weight": torch.ones(4)}
    _save_shards(
        tmp_path,
        {
            "model-00001-of-00003.safetensors": {name: tensors[name] for name in names[:9]},
            "model-00002-of-00003.safetensors": {**{n: tensors[n] for n in names[9:]}, **language},
            "model-00003-of-00003.safetensors": {"model.norm.weight": torch.ones(4)},
        },
    )
    # What holds the language model alone must not even be opened.
    (tmp_path / "model-00003-of-00003.safetensors").write_bytes(b"language model")
    vision = {
        **VLM,
        "in_chans": 3,
        "spatial_patch_size": 14,
        "tokens_per_second": 2,
        "model_type": "qwen2_5_vl",
    }
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 3584, "vision_config": vision}))
    part = load_vlm(locate(str(tmp_path), tmp_path), device=CPU, dtype=torch.float32)
    _assert_equal(part, tower)
    assert [path.name for path in part.files] == [
        "config.json",
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
    ]


def test_names_the_shard_that_is_missing(tmp_path: Path) -> None:
    tower = randomize(build_vlm(VLM))
    _save_shards(tmp_path, {"model-00001-of-00001.safetensors": tower.state_dict()})
    (tmp_path / "config.json").write_text(json.dumps(VLM))
    (tmp_path / "model-00001-of-00001.safetensors").unlink()
    with pytest.raises(
        StackError, match=r"has no model-00001-of-00001.safetensors, which .*index.json names"
    ):
        load_vlm(locate(str(tmp_path), tmp_path), device=CPU, dtype=torch.float32)


def test_dino_positions_are_resampled_as_timm_does(tmp_path: Path) -> None:
    import timm

    arguments = {"embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
    larger = randomize(timm.create_model("vit_small_patch14_dinov2", img_size=126, **arguments))
    config = {
        "architecture": "vit_small_patch14_dinov2",
        "model_args": arguments,
        "pretrained_cfg": {"num_classes": 0, "input_size": [3, 126, 126]},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(larger.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    part = load_dino(locate(str(tmp_path), tmp_path), size=(56, 56), device=CPU, dtype=torch.float32)
    expected = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, img_size=56)
    assert part.module.pos_embed.shape == (1, 17, 32)
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(part.module.state_dict()[name], tensor)


def test_dino_refuses_a_folder_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(DINO))
    with pytest.raises(StackError, match=r"names no architecture; must be the config.json of a timm model"):
        load_dino(locate(str(tmp_path), tmp_path), size=(56, 56), device=CPU, dtype=torch.float32)


def test_diffusers_repositories_are_read_by_subfolder(tmp_path: Path) -> None:
    transformer, vae = randomize(build_transformer(TRANSFORMER)), randomize(build_vae(VAE_095))
    transformer.save_pretrained(tmp_path / "transformer", max_shard_size="20KB")
    vae.save_pretrained(tmp_path / "vae")
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 1
    location = locate(str(tmp_path), tmp_path)
    _assert_equal(load_transformer(location, device=CPU, dtype=torch.float32), transformer)
    _assert_equal(load_vae(location, device=CPU, dtype=torch.float32), vae)


def test_the_original_single_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformer, vae = randomize(build_transformer(TRANSFORMER)), randomize(build_vae(VAE_095))
    vae.latents_mean.copy_(torch.linspace(-1, 1, 8))
    monkeypatch.setattr(loading, "ARCHITECTURES", {"full": {"transformer": TRANSFORMER, "vae": VAE_095}})
    tensors = {original_transformer_name_of(name): each for name, each in transformer.state_dict().items()}
    tensors |= {original_vae_name_of(name): each for name, each in vae.state_dict().items()}
    tensors |= {f"vae.per_channel_statistics.{name}": torch.zeros(8) for name in ("channel", "mean-of-stds")}
    path = tmp_path / "ltxv-2b.safetensors"
    save_file(tensors, path)
    location = locate(str(path), tmp_path)
    _assert_equal(load_transformer(location, device=CPU, dtype=torch.float32), transformer)
    _assert_equal(load_vae(location, device=CPU, dtype=torch.float32), vae)


def test_a_single_file_of_other_sizes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "ARCHITECTURES", {"full": {"transformer": TRANSFORMER}})
    larger = build_transformer({**TRANSFORMER, "num_layers": 3})
    tensors = {original_transformer_name_of(name): each for name, each in larger.state_dict().items()}
    save_file(tensors, tmp_path / "ltxv-13b.safetensors")
    location = locate("ltxv-13b.safetensors", tmp_path)
    with pytest.raises(StackError, match=r"ltxv-13b.safetensors: tensor transformer_blocks.2.* has no place"):
        load_transformer(location, device=CPU, dtype=torch.float32)
