"""Adapters on disk: a folder of config.json and model.safetensors, tied to the stack of its training."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from foresight import __version__
from foresight.adapters.adapter import Adapter
from foresight.adapters.build import build_adapter
from foresight.adapters.config import AdapterConfig
from foresight.adapters.errors import AdapterError

__all__ = ["FORMAT_VERSION", "load_adapter", "read_adapter_config", "save_adapter"]

FORMAT_VERSION = 1
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_KEYS = {
    "format_version",
    "foresight_version",
    "architecture",
    "configuration",
    "stack_fingerprint",
    "metrics",
}


def save_adapter(
    adapter: Adapter,
    folder: str | Path,
    *,
    stack_fingerprint: str,
    metrics: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Write `adapter` to `folder`, its weights as `dtype`, and return the folder's path.

    The checkpoint is complete before it takes its name; one of that name is replaced, anything else there is
    not. `metrics` is any JSON object. Raises AdapterError for weights that are not finite in `dtype`, for
    metrics that JSON cannot hold and for a folder with other files in it, OSError when the disk refuses.
    """
    folder = Path(folder)
    _check_replaceable(folder)
    tensors = {name: _storable(name, tensor, dtype) for name, tensor in adapter.state_dict().items()}
    configuration = asdict(adapter.config)
    content = {
        "format_version": FORMAT_VERSION,
        "foresight_version": __version__,
        "architecture": configuration.pop("architecture"),
        "configuration": configuration,
        "stack_fingerprint": stack_fingerprint,
        "metrics": dict(metrics or {}),
    }
    text = _as_json(content)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        (new / _CONFIG).write_text(text, encoding="utf-8")
        save_file(tensors, new / _WEIGHTS, metadata={"format": "pt"})
        _put_in_place(new, folder, aside=Path(scratch) / "old")
    return folder


def load_adapter(
    folder: str | Path,
    *,
    stack_fingerprint: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Adapter:
    """Read the adapter in `folder`, in evaluation mode, on `device` and as `dtype`.

    With a `stack_fingerprint` the adapter must have been trained on that stack. Raises AdapterError, one
    line, for a missing or broken file, an unknown format or key, another stack, and tensors that are missing,
    unknown or of another shape.
    """
    folder = Path(folder)
    content = _read_config(folder)
    trained_on = content["stack_fingerprint"]
    if stack_fingerprint is not None and trained_on != stack_fingerprint:
        raise AdapterError(
            f"{folder}: was trained on the features of stack {trained_on!r}, "
            f"those of {stack_fingerprint!r} would mean nothing to it"
        )
    config = _read_configuration(folder, content)
    # Built on the CPU, not on the meta device: that imports torch's decompositions, which takes seconds.
    with torch.random.fork_rng(devices=[]):
        adapter = build_adapter(config)
    tensors = _read_weights(folder)
    _check_tensors(folder, adapter, tensors)
    weights = {name: tensor.to(device=device, dtype=dtype) for name, tensor in tensors.items()}
    adapter.load_state_dict(weights, assign=True)
    return adapter.eval()


def read_adapter_config(folder: str | Path) -> AdapterConfig:
    """Read what the adapter in `folder` is, without its weights; raises AdapterError as `load_adapter` does."""
    folder = Path(folder)
    return _read_configuration(folder, _read_config(folder))


def _storable(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    stored = tensor.detach().to(device="cpu", dtype=dtype).contiguous()
    if not torch.isfinite(stored).all():
        raise AdapterError(f"{name}: is not finite as {dtype}, so that the adapter was not saved")
    return stored


def _check_replaceable(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise AdapterError(f"{folder}: is a file, an adapter needs a folder")
    others = sorted(path.name for path in folder.iterdir() if path.name not in (_CONFIG, _WEIGHTS))
    if others:
        raise AdapterError(
            f"{folder}: holds {others[0]}, which is no part of an adapter, so it is not replaced"
        )


def _as_json(content: dict[str, Any]) -> str:
    try:
        return json.dumps(content, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise AdapterError(f"metrics: cannot be written as JSON ({error})") from error


def _put_in_place(new: Path, folder: Path, aside: Path) -> None:
    if not folder.exists():
        new.rename(folder)
        return
    # A folder cannot be renamed onto a full one: the old one steps aside, and returns if the new one fails.
    folder.rename(aside)
    try:
        new.rename(folder)
    except OSError:
        aside.rename(folder)
        raise


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / _CONFIG
    if not path.is_file():
        raise AdapterError(f"{folder}: is not an adapter, {_CONFIG} is missing")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AdapterError(f"{path}: is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise AdapterError(f"{path}: must hold a JSON object")
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise AdapterError(
            f"{path}: format_version {version!r} is unknown, this version reads {FORMAT_VERSION}"
        )
    _check_keys(path, content, _KEYS)
    return content


def _read_configuration(folder: Path, content: dict[str, Any]) -> AdapterConfig:
    path = folder / _CONFIG
    configuration = content["configuration"]
    if not isinstance(configuration, dict):
        raise AdapterError(f"{path}: configuration must be a JSON object")
    _check_keys(path, configuration, {field.name for field in fields(AdapterConfig)} - {"architecture"})
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in configuration.items()
    }
    try:
        return AdapterConfig(architecture=content["architecture"], **values)
    except AdapterError as error:
        raise AdapterError(f"{path}: {error}") from error


def _check_keys(path: Path, content: Mapping[str, Any], expected: set[str]) -> None:
    unknown, missing = sorted(content.keys() - expected), sorted(expected - content.keys())
    if unknown:
        raise AdapterError(f"{path}: unknown key {unknown[0]!r}")
    if missing:
        raise AdapterError(f"{path}: key {missing[0]!r} is missing")


def _read_weights(folder: Path) -> dict[str, Tensor]:
    path = folder / _WEIGHTS
    if not path.is_file():
        raise AdapterError(f"{folder}: is not a complete adapter, {_WEIGHTS} is missing")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise AdapterError(f"{path}: is not a safetensors file ({error})") from error


def _check_tensors(folder: Path, adapter: Adapter, tensors: Mapping[str, Tensor]) -> None:
    path = folder / _WEIGHTS
    expected = adapter.state_dict()
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing:
        raise AdapterError(f"{path}: tensor {missing[0]} is missing ({len(missing)} in all)")
    if unknown:
        raise AdapterError(f"{path}: tensor {unknown[0]} is unknown ({len(unknown)} in all)")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            shapes = f"{tuple(tensor.shape)}, must be {tuple(expected[name].shape)}"
            raise AdapterError(f"{path}: tensor {name} has shape {shapes}")
        if not tensor.is_floating_point():
            raise AdapterError(f"{path}: tensor {name} is {tensor.dtype}, must be floating-point")
