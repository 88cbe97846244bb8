"""The nano stack's training, from nothing to a stack that loads, at the smallest size there is."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from foresight.adapters import load_adapter
from foresight.models.stack import Stack
from foresight.training.conditioning import encoder_weights
from foresight.training.config import NanoConfig
from foresight.training.nano import NanoTraining


@pytest.mark.slow
def test_every_stage_trains_and_a_finished_one_is_not_trained_twice(tmp_path: Path) -> None:
    config = NanoConfig(run=tmp_path, device="cpu", pool=16, length=1e-6, batch=2)
    assert NanoTraining(config).run()
    stack = Stack.load(str(tmp_path / "stack"))
    for mode in ("conditioning", "latent"):
        adapter = load_adapter(stack.adapter_folder(mode), stack_fingerprint=stack.fingerprint)
        assert adapter.config.mode == mode
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert NanoTraining(config).run()
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}


def test_a_stage_without_its_forerunner_is_refused(tmp_path: Path) -> None:
    config = NanoConfig(run=tmp_path, device="cpu", pool=2, length=1e-6, batch=2, stages=("latent_10m",))
    with pytest.raises(ValueError, match="train stage 'vlm' first"):
        NanoTraining(config).run()


@pytest.mark.slow
def test_training_goes_on_from_a_finished_stack(tmp_path: Path) -> None:
    config = NanoConfig(
        run=tmp_path,
        start_from="nano",
        stages=("decoder", "conditioning_encoder", "steering"),
        device="cpu",
        pool=16,
        length=1e-6,
        rate=1e-6,
        batch=2,
    )
    assert NanoTraining(config).run()
    assert encoder_weights(tmp_path) == tmp_path / "steering" / "encoder.safetensors"
    # As if the steps had been many, so that the old weights are not taken for the new ones.
    for stage, name in (("decoder", "decoder.conv_in.conv.bias"), ("steering", "proj_in.bias")):
        path = tmp_path / stage / "weights.safetensors"
        trained = load_file(path)
        trained[name] += 0.25
        save_file(trained, path)
    assert NanoTraining(replace(config, stages=("conditioning_10m",))).run()
    old, new = Stack.load("nano"), Stack.load(str(tmp_path / "stack"))
    for before, after in (
        (old.decoder.vae.decoder.conv_in.conv.bias, new.decoder.vae.decoder.conv_in.conv.bias),
        (old.decoder.transformer.proj_in.bias, new.decoder.transformer.proj_in.bias),
    ):
        torch.testing.assert_close(after, before + 0.25, atol=2e-3, rtol=1e-3)
    weight = load_file(tmp_path / "decoder" / "weights.safetensors")["decoder.conv_in.conv.weight"]
    torch.testing.assert_close(new.decoder.vae.decoder.conv_in.conv.weight, weight, atol=1e-3, rtol=1e-3)
    video = torch.rand(1, 3, 9, 128, 192) * 2 - 1
    latents = old.latent_extractor(video)
    torch.testing.assert_close(new.latent_extractor(video), latents)
    # All but what was shifted is as before.
    with torch.no_grad():
        new.decoder.vae.decoder.conv_in.conv.bias.sub_(0.25)
    torch.testing.assert_close(new.decoder.decode(latents), old.decoder.decode(latents), atol=0.05, rtol=0)
    assert not (tmp_path / "stack" / "adapters" / "latent_10m").exists()
    load_adapter(new.adapter_folder("conditioning"), stack_fingerprint=new.fingerprint)
    with pytest.raises(ValueError, match="'vae' belongs in another run"):
        NanoTraining(replace(config, stages=("vae",))).run()
