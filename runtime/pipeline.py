"""From batches of frames to reconstructed batches: see, translate, paint, one chunk at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from foresight.media import FrameBatch
from foresight.models.sigmas import sigma_schedule
from foresight.runtime.chunks import Chunk, split_into_chunks
from foresight.runtime.config import PipelineConfig
from foresight.runtime.framing import Letterbox
from foresight.runtime.quality import QualityMeter
from foresight.runtime.timing import StageClock

if TYPE_CHECKING:
    from foresight.models.stack import Stack
    from foresight.runtime.backend import Backend

__all__ = ["Pipeline", "ReconstructedChunk"]

# A GPU works on the next chunk while the host takes the frames of the one before.
_CHUNKS_IN_FLIGHT = 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReconstructedChunk:
    """The frames of one chunk: `batch` as reconstructed, `source` as read; same number, same times."""

    index: int
    batch: FrameBatch
    source: FrameBatch


class Pipeline:
    """A stack and what runs its adapter at work; a chunk depends on nothing but the clip, the seed and its index.

    Raises ValueError for an adapter of another mode than the configuration's and for steps that the stack's
    schedule does not have.
    """

    def __init__(
        self,
        stack: Stack,
        adapter: Backend,
        config: PipelineConfig,
        *,
        clock: StageClock | None = None,
    ) -> None:
        if adapter.config.mode != config.mode:
            raise ValueError(f"mode {config.mode!r}: the adapter was made for {adapter.config.mode!r}")
        parameter = next(stack.vlm.parameters())
        self.stack, self.adapter, self.config = stack, adapter, config
        self.device, self.dtype = parameter.device, parameter.dtype
        self.clock = clock or StageClock(self.device)
        self._sigmas = sigma_schedule(stack.config, config.steps)

    def stream(
        self, batches: Iterable[FrameBatch], *, quality: QualityMeter | None = None
    ) -> Iterator[ReconstructedChunk]:
        """Reconstruct the frames of one clip as they come, in constant memory.

        With `quality` every chunk is compared with its input at the model's size, borders left out.
        """
        waiting: deque[_Launched] = deque()
        in_flight = _CHUNKS_IN_FLIGHT if self.device.type == "cuda" else 1
        for chunk in split_into_chunks(batches, self.stack.config.num_frames):
            waiting.append(self._launch(chunk, quality))
            if len(waiting) == in_flight:
                yield self._finish(waiting.popleft())
        while waiting:
            yield self._finish(waiting.popleft())

    def reconstruct(self, chunk: Chunk) -> ReconstructedChunk:
        """Reconstruct one chunk of a source that is still running, and wait for it."""
        return self._finish(self._launch(chunk, None))

    def _launch(self, chunk: Chunk, quality: QualityMeter | None) -> _Launched:
        # Events and pinned copies belong to the thread's current GPU, whichever the models are on.
        on_device = torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()
        with torch.inference_mode(), on_device:
            return self._reconstruct(chunk, quality)

    def _reconstruct(self, chunk: Chunk, quality: QualityMeter | None) -> _Launched:
        height, width = chunk.batch.height, chunk.batch.width
        letterbox = Letterbox((height, width), self.stack.config.size)
        size = (height, width) if self.config.size == "source" else letterbox.fitted
        with self.clock.stage("preprocess"):
            video = letterbox.fit(_to_device(chunk.frames, self.device))
            vlm_pixels = self.stack.vlm.preprocess(video).to(self.dtype)
            dino_pixels = self.stack.dino.preprocess(video).to(self.dtype)
        reconstruction = self._paint(self._translate(vlm_pixels, dino_pixels), chunk.index)
        if quality is not None:
            with self.clock.stage("quality"):
                pair = (letterbox.crop(each[:, :, chunk.emitted]) for each in (reconstruction, video))
                quality.add(*pair)
        with self.clock.stage("postprocess"):
            frames = letterbox.restore(reconstruction[:, :, chunk.emitted], size)
            return _Launched(chunk, frames)

    def _translate(self, vlm_pixels: Tensor, dino_pixels: Tensor) -> Tensor:
        vlm, dino, dtype = self.stack.vlm, self.stack.dino, self.adapter.dtype
        with self.clock.stage("vlm"):
            vlm_hidden_states = vlm(vlm_pixels).to(dtype).contiguous()
        with self.clock.stage("dino"):
            dino_hidden_states = dino(dino_pixels).to(dtype).contiguous()
        with self.clock.stage("adapter"):
            # Perhaps a buffer that the next call overwrites. No copy is needed: it is read to the end by what is put
            # on the same stream below, ahead of the next chunk, of whichever clip.
            translated: Tensor = self.adapter(
                vlm_hidden_states, dino_hidden_states, vlm_grid=vlm.token_grid, dino_grid=dino.token_grid
            )
        return translated

    def _paint(self, translated: Tensor, index: int) -> Tensor:
        decoder, seed = self.stack.decoder, self.config.seed
        if self.config.mode == "latent":
            latents = translated.float()
        else:
            with self.clock.stage("denoise"):
                shape = (1, decoder.vae.config.latent_channels, *self.stack.config.latent_size)
                latents = decoder.denoise(translated, decoder.noise(seed, index, shape), self._sigmas)
        with self.clock.stage("vae"):
            return decoder.decode(latents, seed=seed, first_index=index)

    def _finish(self, launched: _Launched) -> ReconstructedChunk:
        frames = launched.frames()
        self.clock.settle()
        source = launched.chunk.batch
        batch = FrameBatch(frames=frames, timestamps=source.timestamps, fps=source.fps)
        return ReconstructedChunk(index=launched.chunk.index, batch=batch, source=source)


class _Launched:
    """A chunk whose frames are on their way from the device to the host."""

    def __init__(self, chunk: Chunk, frames: Tensor) -> None:
        self.chunk = chunk
        self._done: Any = None  # torch leaves its events untyped
        if frames.is_cuda:
            # Into pinned memory the copy runs beside the host, which waits for the event when it needs the
            # frames.
            self._frames = torch.empty(frames.shape, dtype=frames.dtype, pin_memory=True)
            self._frames.copy_(frames, non_blocking=True)
            new_event: Any = torch.cuda.Event
            self._done = new_event()
            self._done.record()
        else:
            self._frames = frames

    def frames(self) -> np.ndarray:
        if self._done is not None:
            self._done.synchronize()
        return self._frames.numpy()


def _to_device(frames: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(frames)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
