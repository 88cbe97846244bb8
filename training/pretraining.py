"""Pretraining of the nano encoders on objectives that know nothing of the video decoder.

The image encoder paints masked patches, the clip encoder repeats its own pixels and names what the scene does; the
heads are thrown away. An adapter therefore has something to bridge.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from foresight.models.dino import DinoExtractor
from foresight.models.vlm import QwenLatentExtractor
from foresight.training.clips import ATTRIBUTES, ClipPool
from foresight.training.losses import pixel_loss

__all__ = ["MaskedPatchTask", "SceneTask"]

MASK_SHARE = 0.4


class MaskedPatchTask(nn.Module):
    """A `DinoExtractor` that predicts the pixels of every patch, in half of the clips with patches hidden.

    After SimMIM (Xie et al., 2022), with the visible patches in the loss too.
    """

    ADAMW = ("patch_embed.proj", "head")

    def __init__(self, dino: DinoExtractor, pool: ClipPool, batch: int) -> None:
        super().__init__()
        self.dino = dino
        self.pool = pool
        self.batch = batch
        self.patch = int(dino.model.patch_embed.patch_size[0])
        self.head = nn.Linear(dino.model.embed_dim, 3 * self.patch**2)

    def forward(self) -> dict[str, Tensor]:
        """Draw a batch and return the loss, and the error on the visible and hidden patches alone."""
        video, _ = self.pool.sample(self.batch)
        pixel_values = self.dino.preprocess(video)
        images = pixel_values.flatten(0, 1)
        targets = functional.pixel_unshuffle(images, self.patch).flatten(2).transpose(1, 2)
        hidden = torch.rand((images.shape[0], targets.shape[1], 1), device=images.device) < MASK_SHARE
        hidden = hidden & (torch.rand((images.shape[0], 1, 1), device=images.device) < 0.5)
        visible = targets * ~hidden
        rows, columns = (side // self.patch for side in images.shape[2:])
        painted = visible.transpose(1, 2).reshape(images.shape[0], -1, rows, columns)
        painted = functional.pixel_shuffle(painted, self.patch).reshape(pixel_values.shape)
        prediction = self.head(self.dino(painted)).reshape(targets.shape)
        error = (prediction - targets).square().mean(-1, keepdim=True)
        share = hidden.float().mean().clamp(min=1e-6)
        return {
            "loss": pixel_loss(prediction, targets),
            "hidden": (error * hidden).mean() / share,
            "visible": (error * ~hidden).mean() / (1 - share),
        }


class SceneTask(nn.Module):
    """A `QwenLatentExtractor` whose tokens repeat their own pixels and, on average, describe the scene.

    The description is the clip's attributes: camera motion, number of shapes, kind of texture.
    """

    ADAMW = ("patch_embed.proj", "pixels", "scene")

    def __init__(self, vlm: QwenLatentExtractor, width: int, pool: ClipPool, batch: int) -> None:
        super().__init__()
        self.vlm = vlm
        self.pool = pool
        self.batch = batch
        t, rows, columns = vlm.grid_thw
        self.patches_per_token = (
            t * rows * columns // (vlm.token_grid[0] * vlm.token_grid[1] * vlm.token_grid[2])
        )
        pixels_per_patch = vlm.preprocess(pool.sample(1)[0]).shape[-1]
        self.pixels = nn.Linear(width, self.patches_per_token * pixels_per_patch)
        self.scene = nn.Linear(width, ATTRIBUTES)

    def forward(self) -> dict[str, Tensor]:
        """Draw a batch and return the loss and its parts."""
        video, attributes = self.pool.sample(self.batch)
        pixel_values = self.vlm.preprocess(video)
        hidden_states = self.vlm(pixel_values)
        # The processor's order keeps the four patches of a merged token together, as the merger reads them.
        targets = pixel_values.reshape(*hidden_states.shape[:2], -1)
        pixels = pixel_loss(self.pixels(hidden_states), targets)
        scene = functional.mse_loss(self.scene(hidden_states.mean(1)).float(), attributes)
        return {"loss": pixels + 0.2 * scene, "pixels": pixels, "scene": scene}
