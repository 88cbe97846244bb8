"""Every frame comes out once, in its place, at its size and time, whatever the length of the clip."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from foresight.media import FrameBatch
from foresight.runtime.config import PipelineConfig
from foresight.runtime.pipeline import Pipeline
from foresight.runtime.quality import QualityMeter

LATENT = PipelineConfig(mode="latent")


def noisy_clip(count: int, size: tuple[int, int], batch: int = 8) -> Iterator[FrameBatch]:
    generator = np.random.default_rng(0)
    for start in range(0, count, batch):
        numbers = np.arange(start, min(start + batch, count))
        frames = generator.integers(0, 256, (len(numbers), *size, 3), np.uint8)
        yield FrameBatch(frames=frames, timestamps=numbers / 25 + (numbers > 3), fps=Fraction(25))


@pytest.mark.parametrize("count", [1, 5, 9, 10, 17])
def test_models_that_change_nothing_give_the_clip_back(
    count: int, identity_stack: Any, identity: Any
) -> None:
    source = list(noisy_clip(count, (128, 192)))
    chunks = list(Pipeline(identity_stack, identity, LATENT).stream(source))
    for expected, name in ((source, "frames"), (source, "timestamps")):
        ours = np.concatenate([getattr(chunk.batch, name) for chunk in chunks])
        np.testing.assert_array_equal(ours, np.concatenate([getattr(batch, name) for batch in expected]))
    assert [chunk.index for chunk in chunks] == identity.seen == list(range(len(chunks)))
    assert all(chunk.batch.fps == 25 for chunk in chunks)


@pytest.mark.parametrize(
    ("size", "output", "shape"),
    [
        ((90, 160), "source", (90, 160)),
        ((90, 160), "model", (108, 192)),
        ((301, 77), "source", (301, 77)),
        ((301, 77), "model", (128, 32)),
    ],
)
def test_output_sizes(
    size: tuple[int, int], output: Any, shape: tuple[int, int], identity_stack: Any, identity: Any
) -> None:
    config = PipelineConfig(mode="latent", size=output)
    (chunk,) = Pipeline(identity_stack, identity, config).stream(noisy_clip(3, size))
    assert chunk.batch.frames.shape == (3, *shape, 3)
    assert chunk.source.frames.shape == (3, *size, 3)


def test_a_thousand_frames_in_constant_memory(identity_stack: Any, identity: Any) -> None:
    pipeline = Pipeline(identity_stack, identity, LATENT)
    counts, peaks = [], []
    for chunk in pipeline.stream(noisy_clip(1000, (360, 640))):
        counts.append(len(chunk.batch))
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert counts == [9, *[8] * 123, 7]
    # The clip itself would be 691 MB.
    assert peaks[-1] - peaks[3] < 60 * 1024


def test_quality_counts_the_frames_of_the_clip_once_and_no_border(identity_stack: Any, identity: Any) -> None:
    class Darker(type(identity)):  # type: ignore[misc]
        def decode(self, latents: Any, **_: Any) -> Any:
            darker = latents - 0.2
            darker[..., :10, :] = -9.0
            return darker

    identity_stack.decoder = Darker()
    meter = QualityMeter()
    frames = np.full((12, 90, 160, 3), 200, np.uint8)
    clip = FrameBatch(frames=frames, timestamps=np.arange(12.0), fps=Fraction(1))
    list(Pipeline(identity_stack, identity, LATENT).stream([clip], quality=meter))
    assert meter.psnr_db == pytest.approx(20.0, abs=1e-3)
    assert 0.9 < (meter.ssim or 0) < 1


class OneBuffer:
    """A translator that answers in the same memory every time, and takes contiguous features of its dtype alone."""

    config, dtype = SimpleNamespace(mode="latent"), torch.float32

    def __init__(self) -> None:
        self._buffer: Tensor | None = None

    def __call__(self, vlm: Tensor, dino: Tensor, **_: Any) -> Tensor:
        for features in (vlm, dino):
            assert features.is_contiguous()
            assert features.dtype == self.dtype
        if self._buffer is None:
            self._buffer = torch.empty_like(vlm)
        return self._buffer.copy_(vlm)


def test_a_translator_may_overwrite_its_last_answer(identity_stack: Any, identity: Any) -> None:
    class Strided(type(identity)):  # type: ignore[misc]
        def forward(self, states: Tensor) -> Tensor:
            return states.double().mT.contiguous().mT

    identity_stack.vlm = identity_stack.dino = Strided()
    translator: Any = OneBuffer()
    pipelines = [Pipeline(identity_stack, translator, LATENT) for _ in range(2)]
    clips = [list(noisy_clip(25, (128, 192), batch)) for batch in (8, 5)]
    # Two requests of one server take turns.
    turns = zip(*(each.stream(clip) for each, clip in zip(pipelines, clips, strict=True)), strict=True)
    for clip, chunks in zip(clips, zip(*turns, strict=True), strict=True):
        frames = np.concatenate([chunk.batch.frames for chunk in chunks])
        np.testing.assert_array_equal(frames, np.concatenate([batch.frames for batch in clip]))


def test_an_adapter_of_the_other_mode_is_refused(identity_stack: Any, identity: Any) -> None:
    with pytest.raises(ValueError, match=r"mode 'conditioning'.*made for 'latent'"):
        Pipeline(identity_stack, identity, PipelineConfig(mode="conditioning"))
