"""The frozen models of one stack, loaded and ready: the encoders, the latent extractor and the decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from foresight.models.architectures import (
    build_dino,
    build_random,
    build_transformer,
    build_vae,
    build_vlm,
)
from foresight.models.dino import DinoExtractor
from foresight.models.errors import StackError
from foresight.models.fingerprint import random_fingerprint, stack_fingerprint
from foresight.models.loading import load_dino, load_transformer, load_vae, load_vlm
from foresight.models.presets import ARCHITECTURES, StackConfig
from foresight.models.repository import HubRepository, Location, locate
from foresight.models.stack_file import load_config, stack_folder
from foresight.models.video import LTXDecoder, LTXLatentExtractor
from foresight.models.vlm import QwenLatentExtractor

__all__ = ["Stack", "load_config"]

_BUILDERS: Mapping[str, Callable[[Mapping[str, Any]], nn.Module]] = {
    "vlm": build_vlm,
    "dino": build_dino,
    "transformer": build_transformer,
    "vae": build_vae,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Frozen models with one configuration; `fingerprint` tells their weights from others.

    `hub_parts` names the parts that came from the hub, as `owner/name@revision` where a revision is pinned.
    """

    config: StackConfig
    vlm: QwenLatentExtractor
    dino: DinoExtractor
    latent_extractor: LTXLatentExtractor
    decoder: LTXDecoder
    fingerprint: str
    folder: Path
    hub_parts: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(
        cls,
        name_or_folder: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        random_weights: bool = False,
    ) -> Stack:
        """Load a stack that ships by its name, or any folder with a stack.json, in evaluation mode.

        `dtype` is bfloat16 on CUDA and float32 elsewhere unless given. `random_weights` builds the named
        stack without reading or downloading anything, for latency work. Raises StackError in one line for an
        unknown name and for parts that are missing, damaged or do not fit together.
        """
        device = torch.device(device)
        if dtype is None:
            dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        config = load_config(name_or_folder)
        folder = stack_folder(name_or_folder)
        if random_weights:
            modules = _random_modules(config, device, dtype)
            return cls._assemble(config, modules, random_fingerprint(config), folder, {})
        # Everything is located before anything is read: a missing part should not cost minutes.
        places = {part: locate(getattr(config, part), folder) for part in _BUILDERS}
        modules, files = _read_modules(config, places, device, dtype)
        hub_parts = {
            part: str(place) for part, place in places.items() if isinstance(place.repository, HubRepository)
        }
        return cls._assemble(config, modules, stack_fingerprint(config, files), folder, hub_parts)

    def adapter_folder(self, mode: Literal["conditioning", "latent"]) -> Path:
        """Return where the stack's 10M adapter of a mode lies, or would lie."""
        return self.folder / "adapters" / f"{mode}_10m"

    @classmethod
    def _assemble(
        cls,
        config: StackConfig,
        modules: Mapping[str, nn.Module],
        fingerprint: str,
        folder: Path,
        hub_parts: Mapping[str, str],
    ) -> Stack:
        try:
            return cls(
                config=config,
                vlm=QwenLatentExtractor(modules["vlm"], config.vlm_size, config.vlm_frames).eval(),
                dino=DinoExtractor(modules["dino"], config.dino_size, config.dino_frames).eval(),
                latent_extractor=LTXLatentExtractor(modules["vae"]).eval(),
                decoder=LTXDecoder(modules["transformer"], modules["vae"], config).eval(),
                fingerprint=fingerprint,
                folder=folder,
                hub_parts=hub_parts,
            )
        except ValueError as error:
            raise StackError(f"stack {config.name}: {error}") from error


def _random_modules(config: StackConfig, device: torch.device, dtype: torch.dtype) -> Mapping[str, nn.Module]:
    architectures = ARCHITECTURES.get(config.name)
    if architectures is None:
        known = ", ".join(ARCHITECTURES)
        raise StackError(f"stack {config.name!r}: random weights are made for {known} alone")
    return {
        part: build_random(build, architectures[part], device=device, dtype=dtype)
        for part, build in _BUILDERS.items()
    }


def _read_modules(
    config: StackConfig, places: Mapping[str, Location], device: torch.device, dtype: torch.dtype
) -> tuple[Mapping[str, nn.Module], tuple[Path, ...]]:
    parts = {
        "vlm": load_vlm(places["vlm"], device=device, dtype=dtype),
        "dino": load_dino(places["dino"], size=config.dino_size, device=device, dtype=dtype),
        "transformer": load_transformer(places["transformer"], device=device, dtype=dtype),
        "vae": load_vae(places["vae"], device=device, dtype=dtype),
    }
    files = tuple(file for part in parts.values() for file in part.files)
    return {name: part.module for name, part in parts.items()}, files
