"""Every stage of one chunk as a call without arguments, each with the inputs that the stage before made."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from foresight.adapters import Adapter
from foresight.media import ClipReader, ClipWriter, FrameBatch
from foresight.models.sigmas import sigma_schedule
from foresight.models.stack import Stack
from foresight.runtime.framing import Letterbox

__all__ = ["STAGE_NAMES", "build_stages"]

STAGE_NAMES = (
    "read",
    "preprocess",
    "vlm",
    "dino",
    "adapter",
    "adapter_latent",
    "denoise",
    "vae",
    "postprocess",
    "write",
)
_STEPS = 4
_FPS = Fraction(24)


def build_stages(
    stack: Stack, query: Adapter, latent: Adapter, folder: Path, *, source: tuple[int, int] | None = None
) -> dict[str, Callable[[], object]]:
    """The stages of a chunk of the stack's length, its frames `source` (height, width) pixels large.

    "adapter" is the one of the conditioning mode, "denoise" takes 4 steps; "read" and "write" take a chunk's
    frames from a file in `folder` and to one.
    """
    parameter = next(query.parameters())
    device, dtype = parameter.device, parameter.dtype
    size = source or stack.config.size
    frames = _moving_gradient(stack.config.num_frames, *size)
    letterbox = Letterbox(size, stack.config.size)
    clip = folder / "clip.mp4"
    _write(clip, frames)

    def preprocess() -> tuple[Tensor, Tensor]:
        video = letterbox.fit(torch.from_numpy(frames).to(device))
        return stack.vlm.preprocess(video).to(dtype), stack.dino.preprocess(video).to(dtype)

    vlm_pixels, dino_pixels = preprocess()
    vlm_states, dino_states = stack.vlm(vlm_pixels), stack.dino(dino_pixels)
    grids = {"vlm_grid": stack.vlm.token_grid, "dino_grid": stack.dino.token_grid}
    translated = query(vlm_states, dino_states, **grids)
    shape = (1, stack.decoder.vae.config.latent_channels, *stack.config.latent_size)

    def denoise() -> Tensor:
        noise = stack.decoder.noise(0, 0, shape)
        return stack.decoder.denoise(translated, noise, sigma_schedule(stack.config, _STEPS))

    latents = denoise()
    video = stack.decoder.decode(latents, seed=0, first_index=0)
    return {
        "read": partial(_read, clip),
        "preprocess": preprocess,
        "vlm": partial(stack.vlm, vlm_pixels),
        "dino": partial(stack.dino, dino_pixels),
        "adapter": partial(query, vlm_states, dino_states, **grids),
        "adapter_latent": partial(latent, vlm_states, dino_states, **grids),
        "denoise": denoise,
        "vae": partial(stack.decoder.decode, latents, seed=0, first_index=0),
        "postprocess": lambda: letterbox.restore(video, size).cpu(),
        "write": partial(_write, folder / "written.mp4", frames),
    }


def _moving_gradient(count: int, height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    shifts = 3 * np.arange(count)[:, None, None]
    planes = [(columns + shifts) % 256, (2 * rows + shifts) % 256, (rows * columns // 64 + shifts) % 256]
    return np.stack(planes, axis=-1).astype(np.uint8)


def _read(path: Path) -> list[FrameBatch]:
    with ClipReader(path) as reader:
        return list(reader.batches(9))


def _write(path: Path, frames: np.ndarray) -> None:
    height, width = frames.shape[1:3]
    times = np.arange(len(frames)) / float(_FPS)
    with ClipWriter(path, width=width, height=height, fps=_FPS, overwrite=True) as writer:
        writer.write(FrameBatch(frames=frames, timestamps=times, fps=_FPS))
