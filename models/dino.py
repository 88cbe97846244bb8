"""What a self-supervised image encoder sees: patch tokens of a DINOv2 vision transformer, frame by frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from foresight.models.pixels import PixelPreprocessor

__all__ = ["DinoExtractor"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class DinoExtractor(nn.Module):
    """Runs a timm `VisionTransformer` on chosen frames of a clip; `size` is (height, width) in pixels.

    Raises ValueError for a size that is not made of whole patches or that the model was not built for.
    """

    model: Any

    def __init__(self, model: nn.Module, size: tuple[int, int], frames: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        patch_height, patch_width = self.model.patch_embed.patch_size
        built_for = tuple(self.model.patch_embed.img_size)
        if size[0] % patch_height or size[1] % patch_width:
            raise ValueError(
                f"size {size[0]}x{size[1]}: must be whole patches of {patch_height}x{patch_width} pixels"
            )
        if built_for != tuple(size):
            raise ValueError(
                f"size {size[0]}x{size[1]}: the model was built for {built_for[0]}x{built_for[1]}"
            )
        self.pixels = PixelPreprocessor(size, frames, IMAGENET_MEAN, IMAGENET_STD)
        self.grid = (size[0] // patch_height, size[1] // patch_width)

    @property
    def token_grid(self) -> tuple[int, int, int]:
        """Frames, rows and columns of patch tokens of one clip."""
        return len(self.pixels.frames), *self.grid

    def preprocess(self, video: Tensor) -> Tensor:
        """Map a float video `[B, 3, T, H, W]` in [-1, 1] to normalised float32 frames `[B, F, 3, h, w]`."""
        return self.pixels(video)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Encode frames `[B, F, 3, h, w]` to normalised patch tokens `[B, F*rows*columns, C]`.

        Tokens stand in (f, h, w) order; class and register tokens are dropped.
        """
        batch = pixel_values.shape[0]
        dtype = self.model.patch_embed.proj.weight.dtype
        tokens: Tensor = self.model.forward_features(pixel_values.flatten(0, 1).to(dtype))
        prefix: int = self.model.num_prefix_tokens
        return tokens[:, prefix:].reshape(batch, -1, tokens.shape[-1])
