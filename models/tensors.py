"""Tensors in safetensors files, one at a time, and how they fill a module."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from foresight.models.errors import StackError
from foresight.models.repository import Repository

__all__ = ["fill", "read_tensors", "weight_files"]

Rename = Callable[[str], str | None]


def weight_files(repository: Repository, stem: str, rename: Rename) -> tuple[Path, ...]:
    """Find `stem.safetensors`, or the shards of its index that hold a tensor which `rename` keeps.

    Raises StackError where neither is there.
    """
    index = repository.find(f"{stem}.safetensors.index.json", optional=True)
    if index is None:
        single = repository.find(f"{stem}.safetensors")
        if single is None:
            raise StackError(f"{repository}: has no {stem}.safetensors (nor its index)")
        return (single,)
    weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    names = sorted({shard for tensor, shard in weight_map.items() if rename(tensor) is not None})
    folder, _, _ = stem.rpartition("/")
    shards = [repository.find(f"{folder}/{name}" if folder else name) for name in names]
    for name, shard in zip(names, shards, strict=True):
        if shard is None:
            raise StackError(f"{repository}: has no {name}, which {index.name} names")
    return tuple(shard for shard in shards if shard is not None)


def read_tensors(files: tuple[Path, ...], rename: Rename) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that `rename` gives a name; the others are not read.

    Raises StackError for a file that is damaged.
    """
    from safetensors import SafetensorError, safe_open

    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                for stored in tensors.keys():  # noqa: SIM118 - the handle is not a mapping
                    if (name := rename(stored)) is not None:
                        yield name, tensors.get_tensor(stored)
        except SafetensorError as error:
            raise StackError(f"{file}: is damaged ({error})") from error


def fill(module: nn.Module, tensors: Iterator[tuple[str, Tensor]], *, source: str) -> None:
    """Copy tensors into a module's parameters and buffers of the same names, cast to their dtypes.

    Raises StackError for a tensor that is missing, of another shape, or has no place.
    """
    places = module.state_dict(keep_vars=True)
    missing = set(places)
    with torch.no_grad():
        for name, tensor in tensors:
            place = places.get(name)
            if place is None:
                raise StackError(f"{source}: tensor {name} has no place in {type(module).__name__}")
            if place.shape != tensor.shape:
                shapes = f"{tuple(tensor.shape)}, must be {tuple(place.shape)}"
                raise StackError(f"{source}: tensor {name} is of shape {shapes}")
            place.copy_(tensor)
            missing.discard(name)
    if missing:
        raise StackError(f"{source}: lacks tensor {min(missing)} and {len(missing) - 1} others")
