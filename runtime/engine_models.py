"""What the server needs of models, and the ones that it loads; the worker's thread is the only one to use them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from foresight.media import FrameBatch
from foresight.models.presets import StackConfig
from foresight.runtime.chunks import Chunk
from foresight.runtime.config import Mode, PipelineConfig
from foresight.runtime.libraries import import_libraries
from foresight.runtime.server_options import ServeOptions

# What imports torch is imported where it is used: the server answers /health while that goes on.
if TYPE_CHECKING:
    from foresight.models.stack import Stack
    from foresight.runtime.backend import Backend
    from foresight.runtime.pipeline import Pipeline, ReconstructedChunk
    from foresight.runtime.timing import StageClock

__all__ = ["ChunkPipeline", "EngineModels", "ServedModels", "load_served_models"]

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
    """A stack and what runs its adapters, or the one in their place, by the mode in which they speak."""

    stack: Stack
    translators: Mapping[Mode, Backend]
    adapter: str

    @property
    def config(self) -> StackConfig:
        """The stack's sizes."""
        return self.stack.config

    @property
    def modes(self) -> tuple[Mode, ...]:
        """What adapters there are, "conditioning" before "latent"."""
        return tuple(self.translators)

    @property
    def backend(self) -> str:
        """What runs the adapters; named once where it is the same for all."""
        return "; ".join(dict.fromkeys(str(each.describe()) for each in self.translators.values()))

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
        """Let go of the backends."""
        for translator in self.translators.values():
            translator.close()


def load_served_models(options: ServeOptions, *, own_process: bool = False) -> ServedModels:
    """Load a stack and what `--adapter` names, and reconstruct a grey clip in every mode.

    `own_process` says that nothing but the server runs in the process, so that imports may leave things out.
    Raises ValueError in one line for what the user can mend.
    """
    if own_process:
        import_libraries()
    models = (
        _load_own_adapters(options) if options.adapter is None else _load_adapter(options, options.adapter)
    )
    for mode in models.modes:
        warm_up(models, PipelineConfig(mode=mode))
    _LOG.info("%s: adapter %s, backend %s", models.config.name, models.adapter, models.backend)
    return models


def warm_up(models: EngineModels, config: PipelineConfig) -> None:
    """Reconstruct two chunks of grey, so that the first request waits for nothing."""
    height, width = _WARM_UP_SIZE
    count = 2 * models.config.num_frames - 1
    grey = np.full((count, height, width, 3), 128, np.uint8)
    batch = FrameBatch(frames=grey, timestamps=np.arange(count) / 24, fps=Fraction(24))
    for _ in models.pipeline(config).stream([batch]):
        continue


def _load_own_adapters(options: ServeOptions) -> ServedModels:
    from foresight.runtime.loading import load_models, load_own_adapter

    random, backend = options.random_weights, options.backend
    first = load_models(options.stack, device=options.device, random_weights=random, backend=backend)
    stack, translators = first.stack, {first.mode: first.adapter}
    if random or stack.adapter_folder("latent").is_dir():
        device, dtype = first.adapter.device, first.adapter.dtype
        translators["latent"], _ = load_own_adapter(
            stack, "latent", device=device, dtype=dtype, random_weights=random, backend=backend
        )
    return ServedModels(stack=stack, translators=translators, adapter=first.adapter_name)


def _load_adapter(options: ServeOptions, path: Path) -> ServedModels:
    from foresight.runtime.loading import load_models

    models = load_models(
        options.stack,
        device=options.device,
        random_weights=options.random_weights,
        adapter=path,
        backend=options.backend,
        engine_sha256=options.engine_sha256,
    )
    return ServedModels(
        stack=models.stack, translators={models.mode: models.adapter}, adapter=models.adapter_name
    )
