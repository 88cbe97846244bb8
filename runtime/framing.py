"""Where a clip's picture lies inside the model's frame, and the way there and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Letterbox", "resize"]


@dataclass(frozen=True, slots=True)
class Letterbox:
    """A source of any size fitted into a model's frame: aspect kept, the border filled by repeating the edge.

    Both sizes are (height, width) in pixels; `fitted` is the picture's own size inside the model's frame,
    even in both directions because the yuv420p files that are written from it have half as much colour.
    Raises ValueError for sizes below 1 pixel (source) or 2 pixels (model).
    """

    source: tuple[int, int]
    model: tuple[int, int]

    def __post_init__(self) -> None:
        if min(self.source) < 1:
            raise ValueError(f"source size {self.source}: both sides must be at least 1 pixel")
        if min(self.model) < 2:
            raise ValueError(f"model size {self.model}: both sides must be at least 2 pixels")

    @property
    def fitted(self) -> tuple[int, int]:
        """Height and width of the picture inside the model's frame."""
        scale = min(model / source for source, model in zip(self.source, self.model, strict=True))
        height, width = (
            min(model - model % 2, max(2, 2 * round(source * scale / 2)))
            for source, model in zip(self.source, self.model, strict=True)
        )
        return height, width

    @property
    def padding(self) -> tuple[int, int, int, int]:
        """Pixels of border left, right, above and below: the order of `torch.nn.functional.pad`."""
        height, width = self.fitted
        rows, columns = self.model[0] - height, self.model[1] - width
        return columns // 2, columns - columns // 2, rows // 2, rows - rows // 2

    def fit(self, frames: Tensor) -> Tensor:
        """Fit uint8 frames [T, *source, 3] into float32 video [1, 3, T, *model] in [-1, 1]."""
        if tuple(frames.shape[1:3]) != self.source:
            raise ValueError(f"frames of {tuple(frames.shape[1:3])}: the letterbox is for {self.source}")
        inner = resize(frames, self.fitted).permute(0, 3, 1, 2).float().mul_(2 / 255).sub_(1)
        if any(self.padding):
            inner = F.pad(inner, self.padding, mode="replicate")
        return inner.transpose(0, 1)[None]

    def crop(self, video: Tensor) -> Tensor:
        """The picture [B, 3, T, *fitted] of a video [B, 3, T, *model], as a view."""
        (left, _, top, _), (height, width) = self.padding, self.fitted
        return video[..., top : top + height, left : left + width]

    def restore(self, video: Tensor, size: tuple[int, int]) -> Tensor:
        """The picture of a float video [1, 3, T, *model] in [-1, 1] as uint8 frames [T, *size, 3]."""
        picture = self.crop(video)[0].permute(1, 2, 3, 0)
        frames = picture.float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
        return resize(frames, size)


def resize(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize uint8 frames [T, H, W, 3] to `size` (height, width), bicubic, antialiased when shrinking."""
    if tuple(frames.shape[1:3]) == size:
        return frames
    planes = frames.permute(0, 3, 1, 2)
    # torch's 8-bit kernel is 10 to 40 times quicker than the float one, but the CPU alone has it; it reads
    # channels-last memory as it stands and rounds its weights to 15 bits.
    if frames.device.type == "cpu":
        resized = F.interpolate(planes, size, mode="bicubic", antialias=True)
    else:
        resized = F.interpolate(planes.float(), size, mode="bicubic", antialias=True)
        resized = resized.round_().clamp_(0, 255).to(torch.uint8)
    return resized.permute(0, 2, 3, 1).contiguous()
