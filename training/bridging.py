"""The losses that train an adapter between frozen encoders and a frozen decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from foresight.adapters import Adapter
from foresight.models.stack import Stack
from foresight.training.conditioning import ConditioningEncoder, sample_sigmas
from foresight.training.losses import pixel_loss, relative_error

__all__ = ["AdapterTask", "ConditioningTask", "Features", "LatentTask", "Pool"]

DECODED_CLIPS = 8


class Pool(Protocol):
    """Where batches come from."""

    def sample(self, batch: int) -> tuple[Tensor, Tensor]:
        """Draw video [B, 3, T, H, W] in [-1, 1] and attributes, without leaving the device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What the encoders saw of one batch: `vlm` [B, N, C], `dino` [B, M, D], and the `video` itself."""

    video: Tensor
    vlm: Tensor
    dino: Tensor


class AdapterTask(nn.Module):
    """What both modes share: a batch is drawn, seen, and translated by the adapter."""

    # First and last layers, which AdamW trains better than Muon.
    ADAMW = ("out_proj", "context.vlm.proj", "context.dino.proj")

    def __init__(self, adapter: Adapter, stack: Stack, pool: Pool, batch: int) -> None:
        super().__init__()
        self.adapter = adapter
        self.stack = stack
        self.pool = pool
        self.batch = batch

    @torch.no_grad()
    def see(self, video: Tensor) -> Features:
        """Run both encoders."""
        vlm, dino = self.stack.vlm, self.stack.dino
        return Features(video=video, vlm=vlm(vlm.preprocess(video)), dino=dino(dino.preprocess(video)))

    def translate(self, features: Features) -> Tensor:
        """The adapter's answer to what the encoders saw."""
        vlm_grid, dino_grid = self.stack.vlm.token_grid, self.stack.dino.token_grid
        answer: Tensor = self.adapter(features.vlm, features.dino, vlm_grid=vlm_grid, dino_grid=dino_grid)
        return answer

    def draw(self) -> tuple[Features, Tensor]:
        """A batch of features and the clips' model-space latents."""
        features = self.see(self.pool.sample(self.batch)[0])
        with torch.no_grad():
            return features, self.stack.latent_extractor(features.video)

    def decoded_loss(self, latents: Tensor, features: Features) -> Tensor:
        """Pixel loss of the first few clips, decoded from estimated latents."""
        decoded = self.stack.decoder.decode(latents[:DECODED_CLIPS], clamp=False)
        return pixel_loss(decoded, features.video[:DECODED_CLIPS])


class ConditioningTask(AdapterTask):
    """Train a conditioning adapter through the frozen transformer.

    The loss is the velocity's error (a quarter of the batch at full noise), the decoded one-step estimate of a few
    clips, and, where the transformer's own conditioning encoder is at hand, the distance to its tokens.
    """

    def __init__(
        self,
        adapter: Adapter,
        stack: Stack,
        pool: Pool,
        batch: int,
        teacher: ConditioningEncoder | None = None,
    ) -> None:
        super().__init__(adapter, stack, pool, batch)
        self.teacher = teacher

    def forward(self) -> dict[str, Tensor]:
        """Draw a batch and return the loss and its parts."""
        features, latents = self.draw()
        tokens = self.translate(features)
        sigmas = sample_sigmas(self.batch, at_one=0.25, device=latents.device)
        level = sigmas[:, None, None, None, None]
        noise = torch.randn_like(latents)
        noisy = torch.lerp(latents, noise, level)
        decoder = self.stack.decoder
        velocity = decoder.velocity(noisy, sigmas, decoder.condition(tokens))
        matched = (velocity - (noise - latents)).square().mean()
        decoded = self.decoded_loss(noisy - level * velocity, features)
        scalars = {"loss": matched + decoded, "velocity": matched, "decoded": decoded}
        if self.teacher is not None:
            with torch.no_grad():
                wanted = self.teacher(latents)
            scalars["tokens"] = relative_error(tokens, wanted)
            scalars["loss"] = scalars["loss"] + scalars["tokens"]
        return scalars


class LatentTask(AdapterTask):
    """Train a latent adapter: its latents against the clip's own, and a few of them decoded."""

    def forward(self) -> dict[str, Tensor]:
        """Draw a batch and return the loss and its parts."""
        features, latents = self.draw()
        estimate = self.translate(features).float()
        matched = (estimate - latents).square().mean()
        decoded = self.decoded_loss(estimate, features)
        return {"loss": matched + decoded, "latents": matched, "decoded": decoded}
