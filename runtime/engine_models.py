"""What the server needs of models, and the ones that it loads; the worker's thread is the only one to use them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from foresight.media import FrameBatch
from foresight.models.presets import StackConfig
from foresight.runtime.chunks import Chunk
from foresight.runtime.config import Mode, PipelineConfig
from foresight.runtime.libraries import import_libraries
from foresight.runtime.server_options import ServeError, ServeOptions

# What imports torch is imported where it is used: the server answers /health while that goes on.
if TYPE_CHECKING:
    import torch

    from foresight.adapters import Adapter
    from foresight.models.stack import Stack
    from foresight.runtime.backend import Backend
    from foresight.runtime.pipeline import Pipeline, ReconstructedChunk
    from foresight.runtime.timing import StageClock

__all__ = ["ChunkPipeline", "EngineModels", "ServedModels", "is_device_fault", "load_served_models"]

_LOG = logging.getLogger(__name__)
_MODES: tuple[Mode, ...] = ("conditioning", "latent")
_WARM_UP_SIZE = (270, 480)


class ChunkPipeline(Protocol):
    """What `foresight.runtime.pipeline.Pipeline` does."""

    @property
    def clock(self) -> StageClock:
        """The times of its stages."""

    def stream(self, batches: Iterable[FrameBatch]) -> Iterator[ReconstructedChunk]:
        """Reconstruct a clip."""

    def reconstruct(self, chunk: Chunk) -> ReconstructedChunk:
        """Reconstruct one chunk."""


class EngineModels(Protocol):
    """Models that are ready to be used by one thread."""

    @property
    def config(self) -> StackConfig:
        """The stack's sizes."""

    @property
    def modes(self) -> tuple[Mode, ...]:
        """What adapters there are; the first is taken where a request names none."""

    def pipeline(self, config: PipelineConfig) -> ChunkPipeline:
        """A pipeline for one request, with a clock of its own."""

    def describe(self) -> Mapping[str, Any]:
        """What `/v1/models` says of them."""

    def close(self) -> None:
        """Let go of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModels:
    """A stack and its adapters, or the engine in their place, by the mode in which they speak."""

    stack: Stack
    translators: Mapping[Mode, Adapter | Backend]
    adapter: str
    backend: str

    @property
    def config(self) -> StackConfig:
        """The stack's sizes."""
        return self.stack.config

    @property
    def modes(self) -> tuple[Mode, ...]:
        """What adapters there are, "conditioning" before "latent"."""
        return tuple(self.translators)

    def pipeline(self, config: PipelineConfig) -> Pipeline:
        """A pipeline for one request."""
        from foresight.runtime.pipeline import Pipeline

        return Pipeline(self.stack, self.translators[config.mode], config)

    def describe(self) -> Mapping[str, Any]:
        """What `/v1/models` says of them."""
        return {
            "stack": self.stack.config.name,
            "stack_fingerprint": self.stack.fingerprint,
            "hub_parts": dict(self.stack.hub_parts),
            "adapter": self.adapter,
            "backend": self.backend,
            "device": str(next(self.stack.vlm.parameters()).device),
        }

    def close(self) -> None:
        """Let go of an engine's backend."""
        for translator in self.translators.values():
            close = getattr(translator, "close", None)
            if callable(close):
                close()


def load_served_models(options: ServeOptions, *, own_process: bool = False) -> ServedModels:
    """Load a stack and what `--adapter` names, and reconstruct a grey clip in every mode.

    `own_process` says that nothing but the server runs in the process, so that imports may leave things out.
    Raises ValueError in one line for what the user can mend.
    """
    if own_process:
        import_libraries()
    from foresight.runtime.device import find_device
    from foresight.runtime.loading import default_dtype

    place = find_device(options.device)
    dtype = default_dtype(place)
    if options.adapter is None:
        models = _load_own_adapters(options, place, dtype)
    else:
        models = _load_adapter(options, options.adapter, place, dtype)
    for mode in models.modes:
        warm_up(models, PipelineConfig(mode=mode))
    _LOG.info("%s on %s: adapter %s, backend %s", models.config.name, place, models.adapter, models.backend)
    return models


def warm_up(models: EngineModels, config: PipelineConfig) -> None:
    """Reconstruct two chunks of grey, so that the first request waits for nothing."""
    height, width = _WARM_UP_SIZE
    count = 2 * models.config.num_frames - 1
    grey = np.full((count, height, width, 3), 128, np.uint8)
    batch = FrameBatch(frames=grey, timestamps=np.arange(count) / 24, fps=Fraction(24))
    for _ in models.pipeline(config).stream([batch]):
        continue


def is_device_fault(error: BaseException) -> bool:
    """Whether an error says that the GPU cannot be used any more by this process."""
    return "CUDA error" in str(error) or type(error).__name__ == "AcceleratorError"


def _load_own_adapters(options: ServeOptions, place: torch.device, dtype: torch.dtype) -> ServedModels:
    from foresight.runtime.loading import load_models

    if options.backend not in (None, "eager"):
        raise ServeError(f"backend {options.backend}: is for an engine; give one with --adapter")
    name = options.stack
    first = load_models(name, device=str(place), random_weights=options.random_weights)
    translators: dict[Mode, Adapter | Backend] = {"conditioning": first.adapter}
    if options.random_weights:
        from foresight.runtime.loading import untrained_adapter

        translators["latent"] = untrained_adapter(first.stack, "latent").to(place, dtype)
    elif (folder := first.stack.adapter_folder("latent")).is_dir():
        from foresight.adapters import load_adapter

        fingerprint = first.stack.fingerprint
        translators["latent"] = load_adapter(folder, stack_fingerprint=fingerprint, device=place, dtype=dtype)
    return ServedModels(
        stack=first.stack, translators=translators, adapter=first.adapter_name, backend="eager"
    )


def _load_adapter(options: ServeOptions, path: Path, place: torch.device, dtype: torch.dtype) -> ServedModels:
    from foresight.models.stack import Stack
    from foresight.runtime.translators import describe_translator, load_translator

    random = options.random_weights
    stack = Stack.load(options.stack, device=place, dtype=dtype, random_weights=random)
    translator = load_translator(
        path,
        stack,
        device=place,
        dtype=dtype,
        backend=options.backend,
        engine_sha256=options.engine_sha256,
    )
    return ServedModels(
        stack=stack,
        translators={cast(Mode, translator.config.mode): translator},
        adapter=path.name,
        backend=describe_translator(translator),
    )
