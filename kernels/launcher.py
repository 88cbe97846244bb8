"""The one place where a kernel is started: eagerly, traced for ahead-of-time compilation, or interpreted."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch.library import wrap_triton
from torch.nn import Parameter

from foresight.kernels.launch import Launch

__all__ = ["INTERPRETED", "padded", "start"]

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def padded(size: int, least: int = 16) -> int:
    """The power of two that holds `size`."""
    return max(least, 1 << (size - 1).bit_length())


def start(
    kernel: Any,
    grid: tuple[int, int, int],
    launch: Launch,
    programmatic: int,
    *arguments: Any,
    waits: bool = True,
    **constants: Any,
) -> None:
    """Launch `kernel` on `grid`.

    `programmatic` lets it start before the kernel ahead of it ends (1: once that one runs, 2: once that one
    waits no more, 0: not at all); it waits for that one's results itself.
    The first kernel of a chain, which waits for nothing, is launched the plain way: `waits` is false.
    """
    if INTERPRETED:
        kernel[grid](*arguments, **constants, PROGRAMMATIC=0)
        return
    # A traced launch keeps no attributes, and the compiled artefact would drop them.
    overlapped = programmatic > 0 and all(
        type(x) in (torch.Tensor, Parameter) for x in arguments if isinstance(x, torch.Tensor)
    )
    extra = {"launch_pdl": True} if overlapped and waits else {}
    wrap_triton(kernel)[grid](
        *arguments,
        **constants,
        PROGRAMMATIC=programmatic if overlapped else 0,
        num_warps=launch.warps,
        num_stages=launch.stages,
        **extra,
    )
