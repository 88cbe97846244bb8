"""Quality of a stack and its adapters on clips that no training saw, with the controls that give it meaning."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model
from torch import Tensor
from tqdm import tqdm

from foresight.adapters import Adapter, load_adapter
from foresight.evaluation import (
    ReconstructionMetrics,
    load_photographs,
    mean_colour,
    other_clip,
    pan_and_zoom,
    psnr,
    static_frame,
)
from foresight.models.sigmas import sigma_schedule
from foresight.models.stack import Stack
from foresight.training.bars import judge
from foresight.training.clips import make_clips
from foresight.training.conditioning import ConditioningEncoder, encoder_weights
from foresight.training.config import EvaluationConfig
from foresight.training.device import choose_device

__all__ = ["HeldOut", "evaluate"]

HELD_OUT_SEED = 1_000_000
BATCH = 8
MOVING = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """A set of clips [B, 3, T, H, W] in [-1, 1], with what is known of them: shapes' masks and colours, motion."""

    video: Tensor
    masks: Tensor | None = None
    colours: Tensor | None = None
    moving: Tensor | None = None

    def batches(self) -> Iterator[HeldOut]:
        """The same in pieces of `BATCH` clips."""
        for start in range(0, self.video.shape[0], BATCH):
            piece = slice(start, start + BATCH)
            yield HeldOut(
                video=self.video[piece],
                masks=None if self.masks is None else self.masks[piece],
                colours=None if self.colours is None else self.colours[piece],
                moving=None if self.moving is None else self.moving[piece],
            )


def held_out_sets(clips: int, size: tuple[int, int], num_frames: int) -> dict[str, HeldOut]:
    """Textures, shapes on textures, and photographs; drawn on the CPU, so that every machine sees the same."""
    sets: dict[str, HeldOut] = {}
    for index, (name, share) in enumerate((("textures", 0.0), ("shapes", 1.0))):
        generator = torch.Generator().manual_seed(HELD_OUT_SEED + index)
        made = make_clips(clips, generator, size=size, num_frames=num_frames, shape_share=share)
        sets[name] = HeldOut(
            video=made.video,
            masks=made.shapes.masks if share else None,
            colours=made.shapes.colours if share else None,
            moving=made.attributes[:, :2].abs().amax(1) > MOVING,
        )
    photographs = pan_and_zoom(load_photographs(), size=size, num_frames=num_frames, clips_per_image=4)
    moving = torch.ones(photographs.shape[0], dtype=torch.bool)
    return {**sets, "photographs": HeldOut(video=photographs, moving=moving)}


class Paths:
    """The ways from a clip to its reconstruction: the autoencoder's ceiling, the adapters, the controls."""

    def __init__(self, config: EvaluationConfig) -> None:
        self.device = choose_device(config.device)
        self.seed = config.seed
        self.stack = Stack.load(config.stack, device=self.device, dtype=torch.float32)
        self.sigmas = sigma_schedule(self.stack.config, config.steps)
        self.adapters = {
            mode: load_adapter(
                self.stack.adapter_folder(mode), stack_fingerprint=self.stack.fingerprint, device=self.device
            )
            for mode in ("conditioning", "latent")
        }
        self.teacher = None if config.run is None else self.load_teacher(config.run)

    def load_teacher(self, run: Path) -> ConditioningEncoder:
        """The conditioning encoder that was trained for the transformer, from the folder of the training."""
        path = encoder_weights(run)
        if path is None:
            missing = run / "conditioning_encoder" / "weights.safetensors"
            raise ValueError(f"{missing} is missing: --run takes a folder that foresight-train nano wrote")
        teacher = ConditioningEncoder(math.prod(self.stack.config.latent_size)).to(self.device).eval()
        try:
            load_model(teacher, str(path))
        except RuntimeError as error:
            raise ValueError(f"{path}: is no conditioning encoder of this version's shape") from error
        return teacher

    @torch.inference_mode()
    def reconstruct(self, video: Tensor) -> dict[str, Tensor]:
        """Every path's answer to a batch of clips."""
        stack = self.stack
        latents = stack.latent_extractor(video)
        answers = {"vae": stack.decoder.decode(latents)}
        if self.teacher is not None:
            answers["own_conditioning"] = self.paint(self.teacher(latents))
        vlm, dino = stack.vlm(stack.vlm.preprocess(video)), stack.dino(stack.dino.preprocess(video))

        def translate(adapter: Adapter) -> Tensor:
            tokens: Tensor = adapter(
                vlm, dino, vlm_grid=stack.vlm.token_grid, dino_grid=stack.dino.token_grid
            )
            return tokens

        answers["conditioning"] = self.paint(translate(self.adapters["conditioning"]))
        answers["latent"] = stack.decoder.decode(translate(self.adapters["latent"]))
        if video.shape[0] > 1:
            answers["other_clip"] = other_clip(answers["conditioning"])
        answers["static_frame"] = static_frame(video)
        answers["mean_colour"] = mean_colour(video)
        return answers

    def paint(self, tokens: Tensor) -> Tensor:
        """Denoise under conditioning tokens and decode."""
        shape = (tokens.shape[0], 128, *self.stack.config.latent_size)
        noise = self.stack.decoder.noise(self.seed, 0, shape)
        return self.stack.decoder.decode(self.stack.decoder.denoise(tokens, noise, self.sigmas))


def evaluate(config: EvaluationConfig) -> dict[str, Any]:
    """Measure every path on every held-out set and judge it by the nano stack's bars; the result is plain JSON."""
    config.check()
    paths = Paths(config)
    size, num_frames = paths.stack.config.size, paths.stack.config.num_frames
    sets: dict[str, Any] = {}
    for name, clips in held_out_sets(config.clips, size, num_frames).items():
        measured: dict[str, Measured] = {}
        for batch in tqdm(list(clips.batches()), desc=name, unit="batch"):
            video = batch.video.to(paths.device)
            for path, answer in paths.reconstruct(video).items():
                measured.setdefault(path, Measured()).update(answer, video, batch)
        sets[name] = {path: value.summary() for path, value in measured.items()}
    return {
        "stack": paths.stack.config.name,
        "weights": paths.stack.fingerprint,
        "steps": config.steps,
        "seed": config.seed,
        "device": str(paths.device),
        "sets": sets,
        "bars": [bar.to_dict() for bar in judge(sets)],
    }


@dataclass(slots=True)
class Measured:
    """What was measured of one path on one set so far."""

    metrics: ReconstructionMetrics = field(default_factory=ReconstructionMetrics)
    moving: list[Tensor] = field(default_factory=list)

    def update(self, answer: Tensor, video: Tensor, batch: HeldOut) -> None:
        """Take in a batch."""
        masks = None if batch.masks is None else batch.masks.to(video.device)
        # Shapes are painted in [0, 1]; the metrics compare with video in [-1, 1].
        colours = None if batch.colours is None else batch.colours.to(video.device) * 2 - 1
        self.metrics.update(answer, video, mask=masks, colour=colours)
        if batch.moving is not None:
            self.moving.append(psnr(answer, video).cpu()[batch.moving])

    def summary(self) -> dict[str, Any]:
        """The means as plain JSON, and the PSNR over the clips that move."""
        summary: dict[str, Any] = self.metrics.compute().to_dict()
        moving = torch.cat(self.moving) if self.moving else torch.empty(0)
        if moving.numel():
            summary["moving_psnr_db"] = float(moving.mean())
        return summary
