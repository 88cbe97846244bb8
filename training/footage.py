"""Clips from a folder of videos, cut into chunks for training an adapter on a user's own material."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from foresight.media import ClipError, ClipReader

__all__ = ["FootagePool"]

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm")


class FootagePool:
    """Every whole chunk of the videos in a folder, held as uint8, up to `max_clips`.

    Frames are scaled to cover `size` and cut to its centre. Raises ValueError where the folder has no video that
    holds a whole chunk; a video that cannot be read is named in `skipped` with the reason.
    """

    def __init__(
        self, folder: Path, *, size: tuple[int, int], num_frames: int, max_clips: int, device: torch.device
    ) -> None:
        if not folder.is_dir():
            raise ValueError(f"{folder}: not a folder; --clips takes a folder of videos")
        self.skipped: list[str] = []
        chunks: list[Tensor] = []
        for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES):
            try:
                chunks.extend(self.read(path, size, num_frames, max_clips - len(chunks)))
            except ClipError as error:
                self.skipped.append(str(error))
            if len(chunks) >= max_clips:
                break
        if not chunks:
            raise ValueError(f"{folder}: no video of {num_frames} frames or more ({', '.join(SUFFIXES)})")
        self.frames = torch.stack(chunks).to(device)

    @staticmethod
    def read(path: Path, size: tuple[int, int], num_frames: int, limit: int) -> list[Tensor]:
        """Up to `limit` whole chunks of one video, uint8 [T, H, W, 3] each."""
        chunks: list[Tensor] = []
        with ClipReader(path) as reader:
            for batch in reader.batches(num_frames):
                if len(chunks) >= limit or len(batch) < num_frames:
                    break
                chunks.append(cover(torch.from_numpy(batch.frames), size))
        return chunks


def cover(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale uint8 frames [T, H, W, 3] to cover `size` with their aspect kept, and cut out the centre."""
    images = frames.permute(0, 3, 1, 2).float()
    scale = max(size[0] / images.shape[2], size[1] / images.shape[3])
    scaled = (max(size[0], round(images.shape[2] * scale)), max(size[1], round(images.shape[3] * scale)))
    images = functional.interpolate(images, scaled, mode="bicubic", antialias=True).clamp(0, 255)
    top, left = (scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2
    images = images[:, :, top : top + size[0], left : left + size[1]]
    return images.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
