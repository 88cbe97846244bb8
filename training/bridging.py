"""The losses that train an adapter between frozen encoders and a frozen decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foresight.adapters import Adapter
from foresight.models.stack import Stack
from foresight.training.conditioning import ConditioningEncoder, sample_sigmas
from foresight.training.examples import Examples, ExampleSource
from foresight.training.losses import pixel_loss, relative_error

__all__ = ["AdapterTask", "ConditioningTask", "LatentTask"]

DECODED_CLIPS = 8
TOKEN_WEIGHT = 0.2


class AdapterTask(nn.Module):
    """What both modes share: a batch is drawn and translated by the adapter."""

    # First and last layers, which AdamW trains better than Muon.
    ADAMW = ("out_proj", "context.vlm.proj", "context.dino.proj")

    def __init__(self, adapter: Adapter, stack: Stack, source: ExampleSource, batch: int) -> None:
        super().__init__()
        self.adapter = adapter
        self.stack = stack
        self.source = source
        self.batch = batch

    def translate(self, examples: Examples) -> Tensor:
        """The adapter's answer to what the encoders saw."""
        vlm_grid, dino_grid = self.stack.vlm.token_grid, self.stack.dino.token_grid
        answer: Tensor = self.adapter(examples.vlm, examples.dino, vlm_grid=vlm_grid, dino_grid=dino_grid)
        return answer

    def decoded_loss(self, latents: Tensor, examples: Examples) -> Tensor:
        """Pixel loss of the first few clips, decoded from estimated latents."""
        decoded = self.stack.decoder.decode(latents[:DECODED_CLIPS], clamp=False)
        return pixel_loss(decoded, examples.video[:DECODED_CLIPS])


class ConditioningTask(AdapterTask):
    """Train a conditioning adapter through the frozen transformer.

    The loss is the velocity's error (a quarter of the batch at full noise), a few one-step estimates decoded, and,
    where the transformer's own conditioning encoder is at hand, a share of the distance to its tokens.
    """

    def __init__(
        self,
        adapter: Adapter,
        stack: Stack,
        source: ExampleSource,
        batch: int,
        teacher: ConditioningEncoder | None = None,
    ) -> None:
        super().__init__(adapter, stack, source, batch)
        self.teacher = teacher

    def forward(self) -> dict[str, Tensor]:
        """Draw a batch and return the loss and its parts."""
        examples = self.source.draw(self.batch)
        latents = examples.latents
        tokens = self.translate(examples)
        sigmas = sample_sigmas(self.batch, at_one=0.25, device=latents.device)
        level = sigmas[:, None, None, None, None]
        noise = torch.randn_like(latents)
        noisy = torch.lerp(latents, noise, level)
        decoder = self.stack.decoder
        predicted = decoder.velocity(noisy, sigmas, decoder.condition(tokens))
        matched = (predicted - (noise - latents)).square().mean()
        decoded = self.decoded_loss(noisy - level * predicted, examples)
        scalars = {"loss": matched + decoded, "velocity": matched, "decoded": decoded}
        if self.teacher is not None:
            with torch.no_grad():
                wanted = self.teacher(latents)
            scalars["tokens"] = relative_error(tokens, wanted)
            scalars["loss"] = scalars["loss"] + TOKEN_WEIGHT * scalars["tokens"]
        return scalars


class LatentTask(AdapterTask):
    """Train a latent adapter: its latents against the clip's own, and a few of them decoded."""

    def forward(self) -> dict[str, Tensor]:
        """Draw a batch and return the loss and its parts."""
        examples = self.source.draw(self.batch)
        estimate = self.translate(examples).float()
        matched = (estimate - examples.latents).square().mean()
        decoded = self.decoded_loss(estimate, examples)
        return {"loss": matched + decoded, "latents": matched, "decoded": decoded}
