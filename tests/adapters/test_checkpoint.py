"""An adapter comes back from disk as it was, or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from foresight.adapters import Adapter, AdapterError, load_adapter, read_adapter_config, save_adapter

ALL = ["query", "cross_attention", "linear", "mlp", "bottleneck", "lora", "perceiver"]
MakeAdapter = Callable[[str], Adapter]


@pytest.fixture
def folder(small_adapter: MakeAdapter, tmp_path: Path) -> Path:
    return save_adapter(small_adapter("query"), tmp_path / "adapter", stack_fingerprint="nano-1")


def _change_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / "config.json").read_text())
    change(content)
    (folder / "config.json").write_text(json.dumps(content))


def _change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("architecture", ALL)
def test_round_trip_gives_the_same_output(
    architecture: str, small_adapter: MakeAdapter, features: Any, tmp_path: Path
) -> None:
    adapter = small_adapter(architecture).eval()
    save_adapter(adapter, tmp_path / "a", stack_fingerprint="nano-1", dtype=torch.float32)
    loaded = load_adapter(tmp_path / "a", stack_fingerprint="nano-1")
    assert type(loaded) is type(adapter)
    assert loaded.config == adapter.config
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    expected = adapter(features.vlm, features.dino, **features.grids())
    torch.testing.assert_close(
        loaded(features.vlm, features.dino, **features.grids()), expected, rtol=0, atol=0
    )


def test_weights_are_stored_in_half_and_loaded_in_the_type_asked_for(folder: Path) -> None:
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.float16}
    for dtype in (torch.float32, torch.bfloat16):
        loaded = load_adapter(folder, dtype=dtype)
        assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}


def test_config_carries_what_others_need(small_adapter: MakeAdapter, tmp_path: Path) -> None:
    save_adapter(small_adapter("lora"), tmp_path / "a", stack_fingerprint="f", metrics={"psnr_db": 29.5})
    content = json.loads((tmp_path / "a" / "config.json").read_text())
    assert content["architecture"] == "lora"
    assert content["stack_fingerprint"] == "f"
    assert content["metrics"] == {"psnr_db": 29.5}
    assert content["foresight_version"]


def test_the_configuration_is_read_without_the_weights(small_adapter: MakeAdapter, tmp_path: Path) -> None:
    adapter = small_adapter("query")
    save_adapter(adapter, tmp_path / "a", stack_fingerprint="nano-1")
    (tmp_path / "a" / "model.safetensors").unlink()
    assert read_adapter_config(tmp_path / "a") == adapter.config
    with pytest.raises(AdapterError, match=r"is not an adapter, config\.json is missing"):
        read_adapter_config(tmp_path)


def test_loading_leaves_the_random_numbers_alone(folder: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    load_adapter(folder)
    assert torch.rand(1) == expected


def test_saving_replaces_the_older_checkpoint_whole(
    folder: Path, small_adapter: MakeAdapter, features: Any
) -> None:
    adapter = small_adapter("lora")
    save_adapter(adapter, folder, stack_fingerprint="nano-2", dtype=torch.float32)
    loaded = load_adapter(folder, stack_fingerprint="nano-2")
    assert torch.equal(loaded(features.vlm, features.dino), adapter(features.vlm, features.dino))
    assert sorted(path.name for path in folder.parent.iterdir()) == ["adapter"]


def test_a_failed_save_leaves_the_older_checkpoint(
    folder: Path, small_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("foresight.adapters.checkpoint.save_file", full_disk)
    with pytest.raises(OSError, match="no space left"):
        save_adapter(small_adapter("lora"), folder, stack_fingerprint="nano-2")
    assert load_adapter(folder, stack_fingerprint="nano-1").config.architecture == "query"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["adapter"]


def test_a_failed_rename_brings_the_older_checkpoint_back(
    folder: Path, small_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def refuse_the_new(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError("refused")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_the_new)
    with pytest.raises(OSError, match="refused"):
        save_adapter(small_adapter("lora"), folder, stack_fingerprint="nano-2")
    assert load_adapter(folder, stack_fingerprint="nano-1").config.architecture == "query"


def test_saving_does_not_replace_what_is_no_adapter(small_adapter: MakeAdapter, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(AdapterError, match=r"holds thesis\.txt, which is no part of an adapter"):
        save_adapter(small_adapter("lora"), tmp_path, stack_fingerprint="f")
    with pytest.raises(AdapterError, match="is a file"):
        save_adapter(small_adapter("lora"), tmp_path / "thesis.txt", stack_fingerprint="f")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_weights_that_the_type_cannot_hold_are_not_saved(small_adapter: MakeAdapter, tmp_path: Path) -> None:
    adapter = small_adapter("query")
    nn.init.constant_(adapter.get_parameter("body.queries"), 1e6)
    with pytest.raises(AdapterError, match=r"body\.queries: is not finite as torch\.float16"):
        save_adapter(adapter, tmp_path / "a", stack_fingerprint="f")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("value", [float("nan"), object()])
def test_metrics_that_are_not_json_are_refused(
    value: object, small_adapter: MakeAdapter, tmp_path: Path
) -> None:
    with pytest.raises(AdapterError, match="metrics: cannot be written as JSON"):
        save_adapter(small_adapter("lora"), tmp_path / "a", stack_fingerprint="f", metrics={"psnr_db": value})
    assert not (tmp_path / "a").exists()


def test_another_stack_is_refused_with_the_reason(folder: Path) -> None:
    with pytest.raises(AdapterError, match=r"was trained on the features of stack 'nano-1'.*'full-7'"):
        load_adapter(folder, stack_fingerprint="full-7")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format_version=2), "format_version 2 is unknown"),
        (lambda c: c.pop("format_version"), "format_version None is unknown"),
        (lambda c: c.update(colour="red"), "unknown key 'colour'"),
        (lambda c: c.pop("stack_fingerprint"), "key 'stack_fingerprint' is missing"),
        (lambda c: c["configuration"].update(dropout=0.1), "unknown key 'dropout'"),
        (lambda c: c["configuration"].pop("ff_dim"), "key 'ff_dim' is missing"),
        (lambda c: c["configuration"].update(num_heads=3), "num_heads 3"),
        (lambda c: c["configuration"].update(max_grid=[1, 2]), "max_grid"),
        (lambda c: c.update(configuration=[]), "configuration must be a JSON object"),
        (lambda c: c.update(architecture="magic"), "architecture 'magic'"),
    ],
)
def test_an_unknown_configuration_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    _change_config(folder, change)
    with pytest.raises(AdapterError, match=message) as caught:
        load_adapter(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("body.queries"), r"tensor body\.queries is missing"),
        (lambda t: t.update(extra=torch.ones(2)), "tensor extra is unknown"),
        (
            lambda t: t.update({"body.queries": torch.ones(4, 64)}),
            r"body\.queries has shape \(4, 64\), must be \(5, 64\)",
        ),
        (
            lambda t: t.update({"body.queries": torch.ones(5, 64, dtype=torch.int8)}),
            r"body\.queries is torch\.int8, must be floating-point",
        ),
    ],
)
def test_wrong_tensors_are_refused(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    _change_weights(folder, change)
    with pytest.raises(AdapterError, match=message):
        load_adapter(folder)


def test_missing_and_broken_files_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"is not an adapter, config\.json is missing"):
        load_adapter(tmp_path / "nothing")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(AdapterError, match="is not a safetensors file"):
        load_adapter(folder)
    weights.unlink()
    with pytest.raises(AdapterError, match=r"model\.safetensors is missing"):
        load_adapter(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(AdapterError, match="is not JSON"):
        load_adapter(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(AdapterError, match="must hold a JSON object"):
        load_adapter(folder)
