"""A stack as a folder, in the layouts that transformers, timm and diffusers read themselves."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foresight.models.errors import StackError
from foresight.models.presets import StackConfig
from foresight.models.stack_file import write_stack_file

__all__ = ["save_dino", "save_stack", "save_transformer", "save_vae", "save_vlm"]

# timm builds a model from the name of a registered one and what differs from it.
_DINO_ARCHITECTURE = "vit_small_patch14_dinov2"
_EXACT = ("latents_mean", "latents_std")


def save_stack(
    folder: str | Path,
    config: StackConfig,
    *,
    vlm: nn.Module,
    dino: nn.Module,
    dino_arch: Mapping[str, Any],
    transformer: nn.Module,
    vae: nn.Module,
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Write stack.json and the four models to a folder and return its path; adapters that lie there stay.

    `config` must name its parts vlm, dino, transformer and vae, which become folders. Every part is complete
    before it replaces an older one, stack.json is written last. Raises StackError for other names and for
    weights that are not finite in `dtype`, OSError when the disk refuses.
    """
    folder = Path(folder)
    for part in ("vlm", "dino", "transformer", "vae"):
        if getattr(config, part) != part:
            raise StackError(f"{part} {getattr(config, part)!r}: a saved stack must call it {part!r}")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving.") as scratch:
        new, old = Path(scratch) / "new", Path(scratch) / "old"
        save_vlm(new / "vlm", vlm, dtype=dtype)
        save_dino(new / "dino", dino, dino_arch, dtype=dtype)
        save_transformer(new / "transformer", transformer, dtype=dtype)
        save_vae(new / "vae", vae, dtype=dtype)
        write_stack_file(new, config)
        old.mkdir()
        for name in ("vlm", "dino", "transformer", "vae", "stack.json"):
            if (folder / name).exists():
                (folder / name).rename(old / name)
            (new / name).rename(folder / name)
    return folder


def save_vlm(folder: Path, tower: Any, *, dtype: torch.dtype = torch.float16) -> None:
    """Write a vision tower as transformers' `from_pretrained` reads it."""
    _write(folder, "model", tower, json.loads(tower.config.to_json_string(use_diff=False)), dtype)


def save_dino(
    folder: Path, model: Any, arch: Mapping[str, Any], *, dtype: torch.dtype = torch.float16
) -> None:
    """Write a vision transformer as `timm.create_model("local-dir:...")` reads it."""
    height, width = model.patch_embed.img_size
    config = {
        "architecture": _DINO_ARCHITECTURE,
        "num_classes": 0,
        "num_features": model.num_features,
        "global_pool": "token",
        "model_args": dict(arch),
        "pretrained_cfg": {
            "input_size": [3, height, width],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "num_classes": 0,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    _write(folder, "model", model, config, dtype)


def save_transformer(folder: Path, transformer: Any, *, dtype: torch.dtype = torch.float16) -> None:
    """Write an LTX-Video transformer as diffusers' `from_pretrained` reads it."""
    config = json.loads(transformer.to_json_string())
    _write(folder, "diffusion_pytorch_model", transformer, config, dtype)


def save_vae(folder: Path, vae: Any, *, dtype: torch.dtype = torch.float16) -> None:
    """Write an LTX-Video autoencoder as diffusers' `from_pretrained` reads it, its statistics in float32."""
    _write(folder, "diffusion_pytorch_model", vae, json.loads(vae.to_json_string()), dtype)


def _write(folder: Path, stem: str, module: nn.Module, config: Mapping[str, Any], dtype: torch.dtype) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: _storable(name, tensor, dtype) for name, tensor in module.state_dict().items()}
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    save_file(tensors, folder / f"{stem}.safetensors", metadata={"format": "pt"})


def _storable(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    stored = tensor.detach().to("cpu", torch.float32 if name in _EXACT else dtype).contiguous()
    if not stored.isfinite().all():
        raise StackError(f"weights: {name} is not finite as {dtype}")
    return stored
