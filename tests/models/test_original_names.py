from __future__ import annotations

import pytest
import torch

from foresight.models.architectures import build_transformer, build_vae
from foresight.models.original_names import (
    original_transformer_name,
    original_vae_name,
    vision_tower_name,
)
from foresight.models.presets import ARCHITECTURES

from .original_layout import original_transformer_name_of, original_vae_name_of


def test_names_of_the_autoencoder_are_those_that_the_library_finds() -> None:
    from diffusers.loaders.single_file_utils import convert_ltx_vae_checkpoint_to_diffusers

    with torch.device("meta"):
        names = set(build_vae(ARCHITECTURES["full"]["vae"]).state_dict())
    originals = {original_vae_name_of(name): name for name in names}
    checkpoint = {name: torch.tensor(index) for index, name in enumerate(originals)}
    # By this shape the library knows the release.
    checkpoint["vae.encoder.conv_out.conv.weight"] = torch.zeros(1, 2048)
    numbers = {name: int(tensor.sum()) for name, tensor in checkpoint.items()}
    theirs = convert_ltx_vae_checkpoint_to_diffusers(checkpoint)
    assert {original_vae_name(name) for name in originals} == names == set(theirs)
    for name, number in numbers.items():
        assert int(theirs[original_vae_name(name)].sum()) == number


def test_names_of_the_transformer_are_those_that_the_library_finds() -> None:
    from diffusers.loaders.single_file_utils import convert_ltx_transformer_checkpoint_to_diffusers

    with torch.device("meta"):
        names = list(build_transformer(ARCHITECTURES["full"]["transformer"]).state_dict())
    checkpoint = {original_transformer_name_of(name): torch.tensor(i) for i, name in enumerate(names)}
    ours = [original_transformer_name(name) for name in checkpoint]
    theirs = convert_ltx_transformer_checkpoint_to_diffusers(checkpoint)
    assert ours == names
    assert [int(theirs[name]) for name in names] == list(range(len(names)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("visual.blocks.0.norm1.weight", "blocks.0.norm1.weight"),
        ("model.visual.merger.mlp.0.bias", "merger.mlp.0.bias"),
        ("blocks.0.norm1.weight", "blocks.0.norm1.weight"),
        ("model.layers.0.mlp.gate_proj.weight", None),
        ("model.language_model.embed_tokens.weight", None),
        ("lm_head.weight", None),
    ],
)
def test_only_vision_tensors_have_a_name(name: str, expected: str | None) -> None:
    assert vision_tower_name(name) == expected


@pytest.mark.parametrize(
    "name", ["vae.per_channel_statistics.channel", "model.diffusion_model.proj_out.bias"]
)
def test_what_is_not_the_autoencoders_has_no_name(name: str) -> None:
    assert original_vae_name(name) is None


def test_the_autoencoder_is_not_the_transformers() -> None:
    assert original_transformer_name("vae.encoder.conv_in.conv.bias") is None
