"""Adapters whose parameters lie where training takes them, without the training."""

from __future__ import annotations

import torch

from foresight.adapters import Adapter

__all__ = ["as_if_trained"]


@torch.no_grad()
def as_if_trained(adapter: Adapter) -> Adapter:
    """The adapter, its norms, biases and queries as far from their start as training takes them, in evaluation mode."""
    for name, parameter in adapter.named_parameters():
        if "norm" in name or name.endswith("bias"):
            parameter.add_(torch.randn_like(parameter) * 0.2)
        elif name.endswith("queries"):
            parameter.mul_(20)
    return adapter.eval()
