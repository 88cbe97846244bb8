"""From a video in [-1, 1] to the pixels that an image encoder expects: pick frames, resize, normalise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["PixelPreprocessor", "select_frames"]


def select_frames(video: Tensor, frames: Sequence[int]) -> Tensor:
    """Pick frames `[B, 3, F, H, W]` from a video `[B, 3, T, H, W]`; raises ValueError where T is too small.

    Uses slices only: an index list would be copied from the host, which a CUDA graph capture refuses.
    """
    if max(frames) >= video.shape[2]:
        raise ValueError(f"video of {video.shape[2]} frames: the encoder looks at frame {max(frames)}")
    step = frames[1] - frames[0] if len(frames) > 1 else 1
    if step > 0 and tuple(frames) == tuple(range(frames[0], frames[-1] + 1, step)):
        return video[:, :, frames[0] : frames[-1] + 1 : step]
    return torch.stack([video[:, :, frame] for frame in frames], dim=2)


class PixelPreprocessor:
    """Picks, resizes (bicubic, anti-aliased) and normalises frames as the encoders' own image processors do.

    `size` is (height, width) in pixels; `mean` and `std` apply to RGB in [0, 1].
    """

    def __init__(
        self,
        size: tuple[int, int],
        frames: Sequence[int],
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> None:
        if not frames or min(frames) < 0:
            raise ValueError(f"frames {tuple(frames)}: must be one or more indices from 0 on")
        self.size = size
        self.frames = tuple(frames)
        self.mean = mean
        self.std = std
        self._affine: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(self, video: Tensor) -> Tensor:
        """Map a float video `[B, 3, T, H, W]` in [-1, 1] to normalised float32 frames `[B, F, 3, h, w]`."""
        pixels = select_frames(video, self.frames).transpose(1, 2).float()
        if tuple(pixels.shape[-2:]) != self.size:
            resized = F.interpolate(
                pixels.flatten(0, 1), self.size, mode="bicubic", align_corners=False, antialias=True
            )
            # Bicubic weights overshoot; the reference processors resize 8-bit images, which cannot.
            pixels = resized.clamp(-1.0, 1.0).view(*pixels.shape[:3], *self.size)
        scale, shift = self._scale_and_shift(video.device)
        return pixels * scale + shift

    def _scale_and_shift(self, device: torch.device) -> tuple[Tensor, Tensor]:
        # Not buffers: casting a tower to bfloat16 must not round the statistics of the pixels.
        if device not in self._affine:
            with torch.inference_mode(False):
                mean = torch.tensor(self.mean, device=device).view(3, 1, 1)
                std = torch.tensor(self.std, device=device).view(3, 1, 1)
                self._affine[device] = (0.5 / std, (0.5 - mean) / std)
        return self._affine[device]
