"""The device that a training runs on."""

from __future__ import annotations

import torch

from foresight.training.config import Device

__all__ = ["choose_device"]


def choose_device(name: Device) -> torch.device:
    """The named device, "auto" a GPU where there is one; raises ValueError for a GPU that is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda': this machine has no usable GPU; choose 'cpu' or 'auto'")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
