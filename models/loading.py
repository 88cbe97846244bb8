"""The parts of a stack from their files, in the libraries' own classes and folder layouts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foresight.models.architectures import (
    build_empty,
    build_transformer,
    build_vae,
    build_vlm,
)
from foresight.models.errors import StackError
from foresight.models.original_names import (
    original_transformer_name,
    original_vae_name,
    vision_tower_name,
)
from foresight.models.part_files import PartFiles
from foresight.models.presets import ARCHITECTURES
from foresight.models.repository import Location
from foresight.models.tensors import fill, read_tensors

__all__ = ["LoadedPart", "load_dino", "load_transformer", "load_vae", "load_vlm"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedPart:
    """A module, and the files that it came from: configurations first, then weights."""

    module: nn.Module
    files: tuple[Path, ...]


def load_vlm(location: Location, *, device: torch.device, dtype: torch.dtype) -> LoadedPart:
    """Load a Qwen2.5-VL vision tower, saved alone or inside a whole checkpoint, of which only it is read."""
    files = PartFiles("vlm", location)
    config = _read_config(files.config)
    module = build_empty(build_vlm, config.get("vision_config", config), device=device, dtype=dtype)
    tensors = read_tensors(files.weights, vision_tower_name)
    fill(module, tensors, source=str(location.repository))
    return LoadedPart(module=module, files=files.all)


def load_dino(
    location: Location, *, size: tuple[int, int], device: torch.device, dtype: torch.dtype
) -> LoadedPart:
    """Load a timm vision transformer for one image size, its positions resampled as timm does."""
    files = PartFiles("dino", location)
    config = _read_config(files.config)
    if "architecture" not in config:
        raise StackError(f"{files.config}: names no architecture; must be the config.json of a timm model")

    def build(config: Mapping[str, Any]) -> nn.Module:
        import timm

        arguments = {**config.get("model_args", {}), "img_size": size, "num_classes": 0}
        model: nn.Module = timm.create_model(config["architecture"], pretrained=False, **arguments)
        return model

    module: Any = build_empty(build, config, device=device, dtype=dtype)
    tensors = _resample_positions(read_tensors(files.weights, _dino_name), module)
    fill(module, tensors, source=str(location.repository))
    return LoadedPart(module=module, files=files.all)


def load_transformer(location: Location, *, device: torch.device, dtype: torch.dtype) -> LoadedPart:
    """Load an LTX-Video transformer from a diffusers folder or repository, or Lightricks' single file."""
    return _load_ltx(
        location, "transformer", build_transformer, original_transformer_name, device=device, dtype=dtype
    )


def load_vae(location: Location, *, device: torch.device, dtype: torch.dtype) -> LoadedPart:
    """Load an LTX-Video autoencoder from the same places; its latent statistics stay in float32."""
    return _load_ltx(location, "vae", build_vae, original_vae_name, device=device, dtype=dtype)


def _load_ltx(
    location: Location,
    part: Literal["transformer", "vae"],
    build: Callable[[Mapping[str, Any]], nn.Module],
    original_name: Callable[[str], str | None],
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> LoadedPart:
    files = PartFiles(part, location)
    if files.config is None:
        # Lightricks' file carries a configuration of another shape; every 2B release since 0.9.5 has these
        # sizes.
        module = build_empty(build, ARCHITECTURES["full"][part], device=device, dtype=dtype)
        tensors, source = read_tensors(files.weights, original_name), str(files.weights[0])
    else:
        module = build_empty(build, _read_config(files.config), device=device, dtype=dtype)
        tensors, source = read_tensors(files.weights, _same_name), f"{location.repository} ({part})"
    fill(module, tensors, source=source)
    return LoadedPart(module=module, files=files.all)


def _read_config(path: Path | None) -> dict[str, Any]:
    assert path is not None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StackError(f"{path}: is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise StackError(f"{path}: must hold a JSON object")
    return config


def _same_name(name: str) -> str | None:
    return name


def _dino_name(name: str) -> str | None:
    # A classifier would have no place; checkpoints of DINOv2 have none.
    return None if name.startswith("head.") else name


def _resample_positions(tensors: Iterator[tuple[str, Tensor]], model: Any) -> Iterator[tuple[str, Tensor]]:
    prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    for name, tensor in tensors:
        if name == "pos_embed" and tensor.shape != model.pos_embed.shape:
            side = int((tensor.shape[1] - prefix) ** 0.5)
            grid = tensor[:, prefix:].float().transpose(1, 2).reshape(1, -1, side, side)
            resized = F.interpolate(grid, model.patch_embed.grid_size, mode="bicubic", antialias=True)
            tensor = torch.cat([tensor[:, :prefix].float(), resized.flatten(2).transpose(1, 2)], dim=1)
        yield name, tensor
