from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from foresight.models.architectures import build_dino, build_transformer, build_vae, build_vlm
from foresight.models.errors import StackError
from foresight.models.fingerprint import local_fingerprint
from foresight.models.presets import STACKS, StackConfig
from foresight.models.saving import save_stack
from foresight.models.sigmas import sigma_schedule
from foresight.models.stack import Stack, load_config

from .towers import DINO, TRANSFORMER, VAE, VLM, randomize

CONFIG = replace(
    STACKS["nano"], name="tiny", size=(64, 96), vlm_size=(56, 84), dino_size=(56, 56), dino_frames=(0, 8)
)


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    parts = {
        "vlm": randomize(build_vlm(VLM)),
        "dino": randomize(build_dino(DINO)),
        "transformer": randomize(build_transformer({**TRANSFORMER, "caption_channels": 24})),
        "vae": randomize(build_vae(VAE)),
    }
    parts["vae"].latents_mean.copy_(torch.linspace(-1, 1, 8))
    parts["vae"].latents_std.copy_(torch.linspace(0.5, 2, 8) / 3)
    return parts


@pytest.fixture(scope="module")
def saved(parts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stacks") / "tiny"
    return save_stack(folder, CONFIG, dino_arch=DINO, dtype=torch.float32, **parts)


def test_a_saved_stack_comes_back_whole(saved: Path, parts: dict[str, Any]) -> None:
    stack = Stack.load(saved)
    assert stack.config == CONFIG
    loaded = {
        "vlm": stack.vlm.tower,
        "dino": stack.dino.model,
        "transformer": stack.decoder.transformer,
        "vae": stack.decoder.vae,
    }
    for name, module in loaded.items():
        states = module.state_dict()
        assert set(states) == set(parts[name].state_dict())
        assert all(torch.equal(states[key], value) for key, value in parts[name].state_dict().items())
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())


def test_a_loaded_stack_reconstructs(saved: Path) -> None:
    stack = Stack.load(saved)
    video = torch.rand(1, 3, 9, 64, 96) * 2 - 1
    with torch.inference_mode():
        assert stack.vlm(stack.vlm.preprocess(video)).shape == (1, 30, 40)
        assert stack.dino(stack.dino.preprocess(video)).shape == (1, 32, 32)
        assert stack.latent_extractor(video).shape == (1, 8, 2, 2, 3)
        noise = stack.decoder.noise(0, 0, (1, 8, *CONFIG.latent_size))
        latents = stack.decoder.denoise(torch.randn(1, 7, 24), noise, sigma_schedule(CONFIG, 2))
        assert stack.decoder.decode(latents).shape == video.shape


def test_half_precision_on_disk_keeps_the_statistics_exact(parts: dict[str, Any], tmp_path: Path) -> None:
    stack = Stack.load(save_stack(tmp_path / "half", CONFIG, dino_arch=DINO, **parts), dtype=torch.bfloat16)
    vae = stack.decoder.vae
    assert vae.latents_std.dtype == torch.float32
    assert torch.equal(vae.latents_std, parts["vae"].latents_std)
    assert vae.decoder.conv_in.conv.weight.dtype == torch.bfloat16
    for tensor in stack.vlm.tower.parameters():
        assert tensor.dtype == torch.bfloat16
    assert stack.vlm.tower.rotary_pos_emb.inv_freq.dtype == torch.float32


def test_the_libraries_read_the_same_folders(saved: Path, parts: dict[str, Any]) -> None:
    import timm
    from diffusers.models.autoencoders.autoencoder_kl_ltx import AutoencoderKLLTXVideo
    from diffusers.models.transformers.transformer_ltx import LTXVideoTransformer3DModel
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

    theirs = {
        "vlm": Qwen2_5_VisionTransformerPretrainedModel.from_pretrained(saved / "vlm"),
        "dino": timm.create_model(f"local-dir:{saved / 'dino'}", pretrained=True),
        "transformer": LTXVideoTransformer3DModel.from_pretrained(saved / "transformer"),
        "vae": AutoencoderKLLTXVideo.from_pretrained(saved / "vae"),
    }
    for name, module in theirs.items():
        states = module.state_dict()
        assert all(torch.equal(states[key], value) for key, value in parts[name].state_dict().items())


def test_fingerprints_tell_weights_and_configurations_apart(
    saved: Path, parts: dict[str, Any], tmp_path: Path
) -> None:
    fingerprint = Stack.load(saved).fingerprint
    assert fingerprint.startswith("tiny-")
    assert len(fingerprint) == len("tiny-") + 12
    again = save_stack(tmp_path / "elsewhere", CONFIG, dino_arch=DINO, dtype=torch.float32, **parts)
    assert Stack.load(again).fingerprint == fingerprint
    slower = save_stack(tmp_path / "slower", replace(CONFIG, fps=12.0), dino_arch=DINO, **parts)
    changed = {**parts, "vae": randomize(build_vae(VAE), std=0.2)}
    other = save_stack(tmp_path / "other", CONFIG, dino_arch=DINO, dtype=torch.float32, **changed)
    prints = {fingerprint, Stack.load(slower).fingerprint, Stack.load(other).fingerprint}
    assert len(prints) == 3


def test_a_fingerprint_is_known_before_the_stack_is_loaded(saved: Path, tmp_path: Path) -> None:
    assert local_fingerprint(saved) == Stack.load(saved).fingerprint
    assert local_fingerprint("nano", random_weights=True) == "nano-random"
    assert local_fingerprint("full") is None
    broken = shutil.copytree(saved, tmp_path / "broken")
    (broken / "dino" / "model.safetensors").unlink()
    with pytest.raises(StackError, match=r"dino: has no model\.safetensors"):
        local_fingerprint(broken)


def test_a_part_of_the_hub_is_known_by_its_revision_and_told_by_its_weights(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    folder, cached = tmp_path / "stack", tmp_path / "models--owner--vlm"
    shutil.copytree(saved, folder)
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "v1").write_text("c" * 40)
    (cached / "snapshots").mkdir()
    (folder / "vlm").rename(cached / "snapshots" / ("c" * 40))
    _write_config(folder, vlm="owner/vlm@v1")
    stack = Stack.load(folder)
    assert stack.hub_parts == {"vlm": "owner/vlm@v1"}
    local = Stack.load(saved)
    assert (stack.fingerprint, local.hub_parts) == (local.fingerprint, {})


def test_saving_again_replaces_the_models_and_keeps_the_adapters(
    parts: dict[str, Any], tmp_path: Path
) -> None:
    folder = save_stack(tmp_path / "stack", CONFIG, dino_arch=DINO, **parts)
    adapter = Stack.load(folder).adapter_folder("latent") / "config.json"
    adapter.parent.mkdir(parents=True)
    adapter.write_text("{}")
    save_stack(folder, replace(CONFIG, fps=12.0), dino_arch=DINO, **parts)
    assert adapter.read_text() == "{}"
    assert load_config(folder).fps == 12.0
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapters",
        "dino",
        "stack.json",
        "transformer",
        "vae",
        "vlm",
    ]


def test_refuses_to_save_what_cannot_be_stored(parts: dict[str, Any], tmp_path: Path) -> None:
    broken = randomize(build_vae(VAE))
    broken.decoder.conv_in.conv.weight[0, 0, 0, 0, 0] = 1e6
    with pytest.raises(StackError, match=r"decoder.conv_in.conv.weight is not finite as torch.float16"):
        save_stack(tmp_path / "stack", CONFIG, dino_arch=DINO, **{**parts, "vae": broken})
    assert list((tmp_path / "stack").iterdir()) == []


def test_random_weights_need_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    import foresight.models.stack as module

    tiny = {"vlm": VLM, "dino": DINO, "transformer": TRANSFORMER, "vae": VAE}
    monkeypatch.setattr(module, "ARCHITECTURES", {"full": tiny})
    config = replace(CONFIG, name="full", schedule="distilled")
    monkeypatch.setattr(module, "load_config", lambda _name: config)
    stack = Stack.load("full", random_weights=True)
    assert stack.fingerprint == "full-random"
    video = torch.rand(1, 3, 9, 64, 96) * 2 - 1
    assert stack.vlm(stack.vlm.preprocess(video)).isfinite().all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("huge", "stack 'huge': no such stack or folder; must be nano, full or a folder with stack.json"),
        ("{}", "has no stack.json"),
    ],
)
def test_names_what_is_unknown(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(StackError, match=message) as caught:
        Stack.load(name.format(tmp_path))
    assert "\n" not in str(caught.value)


def _write_config(folder: Path, **changes: Any) -> None:
    content = {**json.loads((folder / "stack.json").read_text()), **changes}
    (folder / "stack.json").write_text(json.dumps(content))


def _remove_tensors(folder: Path) -> None:
    (folder / "dino" / "model.safetensors").unlink()


def _cut_tensors(folder: Path) -> None:
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def _drop_config(folder: Path) -> None:
    (folder / "transformer" / "config.json").unlink()


def _other_vlm(folder: Path) -> None:
    path = folder / "vlm" / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "hidden_size": 64}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove_tensors, r"dino: has no model.safetensors"),
        (_cut_tensors, r"diffusion_pytorch_model.safetensors: is damaged"),
        (_drop_config, r"transformer: has no config.json"),
        (_other_vlm, r"vlm: tensor .* is of shape .*, must be "),
        (lambda folder: _write_config(folder, vae="elsewhere"), r"has no elsewhere; must be "),
        (lambda folder: _write_config(folder, sise=[1, 2]), r"stack.json: unknown key 'sise'; known are "),
        (lambda folder: _write_config(folder, size=[65, 96]), r"stack.json: size 65x96: "),
        (lambda folder: _write_config(folder, vlm_size=[60, 84]), r"stack tiny: size 60x84: "),
        (lambda folder: (folder / "stack.json").write_text("{"), r"stack.json: is not JSON"),
    ],
)
def test_names_what_is_missing_or_wrong(
    damage: Any, message: str, parts: dict[str, Any], tmp_path: Path
) -> None:
    folder = save_stack(tmp_path / "stack", CONFIG, dino_arch=DINO, **parts)
    damage(folder)
    with pytest.raises(StackError, match=message) as caught:
        Stack.load(folder)
    assert "\n" not in str(caught.value)


def test_configurations_are_read_without_loading(saved: Path) -> None:
    assert load_config("full") is STACKS["full"]
    config = load_config(saved)
    assert isinstance(config, StackConfig)
    assert config.latent_size == (2, 2, 3)
