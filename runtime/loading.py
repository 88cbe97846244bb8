"""The models of one command, ready on their device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from foresight.adapters import Adapter, AdapterConfig, adapter_config, build_adapter, load_adapter
from foresight.models.stack import Stack
from foresight.runtime.adapter_choice import run_adapter
from foresight.runtime.backend import Backend
from foresight.runtime.config import BackendChoice, Mode, check_backend
from foresight.runtime.device import find_device
from foresight.runtime.translators import check_adapter, load_translator, stack_shape

__all__ = ["LoadedModels", "default_dtype", "load_models", "load_own_adapter", "untrained_adapter"]

_ADAPTER_SIZE = "10m"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModels:
    """A stack, what runs the adapter that fits it, and what that adapter is called in a report."""

    stack: Stack
    adapter: Backend
    adapter_name: str

    @property
    def mode(self) -> Mode:
        """What the adapter speaks to."""
        return "latent" if self.adapter.config.mode == "latent" else "conditioning"


def load_models(
    stack_name: str,
    *,
    mode: Mode | None = None,
    device: str = "auto",
    random_weights: bool = False,
    adapter: Path | None = None,
    backend: BackendChoice | None = None,
    engine_sha256: str | None = None,
) -> LoadedModels:
    """Load a stack and its 10M adapter for `mode` ("conditioning" if None), both in the device's usual dtype.

    `adapter` is an engine file or a checkpoint folder to take in its place, in the mode that it was made for;
    `engine_sha256` pins it, `backend` is what runs it. Random weights come with an untrained adapter of the same
    size. Raises ValueError (StackError, AdapterError, EngineError, ReconstructError) in one line for an unknown stack
    or device, for weights that are missing or do not belong together, and for a mode or backend that is not the
    adapter's.
    """
    place = find_device(device)
    check_backend(backend, adapter)
    if adapter is not None:
        # Before the stack is read, which can take minutes.
        check_adapter(adapter, mode)
    dtype = default_dtype(place)
    stack = Stack.load(stack_name, device=place, dtype=dtype, random_weights=random_weights)
    if adapter is None:
        running, name = load_own_adapter(
            stack,
            mode or "conditioning",
            device=place,
            dtype=dtype,
            random_weights=random_weights,
            backend=backend,
        )
    else:
        running = load_translator(
            adapter,
            stack,
            device=place,
            dtype=dtype,
            plan_config=_untrained_config(stack, "conditioning", _ADAPTER_SIZE),
            backend=backend,
            engine_sha256=engine_sha256,
        )
        name = adapter.name
    return LoadedModels(stack=stack, adapter=running, adapter_name=name)


def load_own_adapter(
    stack: Stack,
    mode: Mode,
    *,
    device: torch.device,
    dtype: torch.dtype,
    random_weights: bool = False,
    backend: BackendChoice | None = None,
) -> tuple[Backend, str]:
    """What runs a stack's own 10M adapter of a mode, or an untrained one, and what that adapter is called.

    Raises ValueError as `load_models` does.
    """
    if random_weights:
        adapter, name = untrained_adapter(stack, mode), f"{mode}_{_ADAPTER_SIZE}, untrained"
    else:
        folder = stack.adapter_folder(mode)
        adapter, name = load_adapter(folder, stack_fingerprint=stack.fingerprint), folder.name
    shape = stack_shape(stack)
    return run_adapter(adapter, name, device=device, dtype=dtype, shape=shape, backend=backend), name


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device computes in it, else float32."""
    if device.type == "cuda" or _cpu_computes_in_bfloat16():
        return torch.bfloat16
    return torch.float32


def untrained_adapter(stack: Stack, mode: Mode, *, size: str = _ADAPTER_SIZE, seed: int = 0) -> Adapter:
    """A freshly initialised adapter of a preset size that fits a stack, on the CPU in fp32."""
    config = _untrained_config(stack, mode, size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_adapter(config).eval()


def _untrained_config(stack: Stack, mode: Mode, size: str) -> AdapterConfig:
    decoder = stack.decoder
    outputs = decoder.denoiser.transformer.config.caption_channels
    if mode == "latent":
        outputs = decoder.vae.config.latent_channels
    return adapter_config(
        "query" if mode == "conditioning" else "cross_attention",
        size,
        vlm_dim=stack.vlm.tower.config.out_hidden_size,
        dino_dim=stack.dino.model.num_features,
        output_dim=outputs,
        output_grid=stack.config.latent_size if mode == "latent" else None,
    )


def _cpu_computes_in_bfloat16() -> bool:
    # Elsewhere oneDNN takes bfloat16 by way of float32, and slower. Older versions of torch cannot be asked.
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
