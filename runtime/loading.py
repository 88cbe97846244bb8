"""The models of one command, ready on their device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from foresight.adapters import Adapter, adapter_config, build_adapter, load_adapter
from foresight.models.stack import Stack
from foresight.runtime.config import BackendChoice, Mode
from foresight.runtime.device import find_device

if TYPE_CHECKING:
    from foresight.runtime.backend import Backend

__all__ = ["LoadedModels", "default_dtype", "load_models", "untrained_adapter"]

_ADAPTER_SIZE = "10m"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModels:
    """A stack, the adapter that fits it, and what that adapter is called in a report."""

    stack: Stack
    adapter: Adapter | Backend
    adapter_name: str


def load_models(
    stack_name: str,
    *,
    mode: Mode = "conditioning",
    device: str = "auto",
    random_weights: bool = False,
    adapter: Path | None = None,
    backend: BackendChoice | None = None,
) -> LoadedModels:
    """Load a stack and its 10M adapter for `mode`, both in the device's usual dtype.

    `adapter` is an engine file or a checkpoint folder to take in its place, `backend` what runs an engine.

    Random weights come with an untrained adapter of the same size. Raises ValueError (StackError,
    AdapterError, ReconstructError) in one line for an unknown stack or device and for weights that are
    missing or do not belong together.
    """
    place = find_device(device)
    dtype = default_dtype(place)
    stack = Stack.load(stack_name, device=place, dtype=dtype, random_weights=random_weights)
    if adapter is not None:
        # Compiled engines bring imports that a stack's own adapter does without.
        from foresight.runtime.translators import load_translator

        named = load_translator(adapter, stack, device=place, dtype=dtype, backend=backend)
        return LoadedModels(stack=stack, adapter=named, adapter_name=adapter.name)
    if random_weights:
        untrained = untrained_adapter(stack, mode).to(place, dtype)
        return LoadedModels(stack=stack, adapter=untrained, adapter_name=f"{mode}_{_ADAPTER_SIZE}, untrained")
    folder = stack.adapter_folder(mode)
    own = load_adapter(folder, stack_fingerprint=stack.fingerprint, device=place, dtype=dtype)
    return LoadedModels(stack=stack, adapter=own, adapter_name=folder.name)


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device computes in it, else float32."""
    if device.type == "cuda" or _cpu_computes_in_bfloat16():
        return torch.bfloat16
    return torch.float32


def untrained_adapter(stack: Stack, mode: Mode, *, size: str = _ADAPTER_SIZE, seed: int = 0) -> Adapter:
    """A freshly initialised adapter of a preset size that fits a stack, on the CPU in fp32."""
    decoder = stack.decoder
    outputs = decoder.denoiser.transformer.config.caption_channels
    if mode == "latent":
        outputs = decoder.vae.config.latent_channels
    config = adapter_config(
        "query" if mode == "conditioning" else "cross_attention",
        size,
        vlm_dim=stack.vlm.tower.config.out_hidden_size,
        dino_dim=stack.dino.model.num_features,
        output_dim=outputs,
        output_grid=stack.config.latent_size if mode == "latent" else None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_adapter(config).eval()


def _cpu_computes_in_bfloat16() -> bool:
    # Elsewhere oneDNN takes bfloat16 by way of float32, and slower. Older versions of torch cannot be asked.
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
