"""Data-dependent initialisation: one pass that gives every convolution outputs of zero mean and unit variance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

__all__ = ["centre_convolutions"]


@contextmanager
def centre_convolutions(module: nn.Module, scale: Callable[[str], float]) -> Iterator[None]:
    """While the context is open, the first pass through each Conv3d rescales its weight and shifts its bias.

    `scale` maps a convolution's name to the standard deviation that its outputs should have. Without this a network
    of RMS norms and SiLUs starts grey: colour is a small deviation from a large common mean. After Krähenbühl et
    al., "Data-dependent Initializations of Convolutional Neural Networks" (2016).
    """
    with ExitStack() as hooks:
        for name, layer in module.named_modules():
            if isinstance(layer, nn.Conv3d):
                hooks.callback(layer.register_forward_hook(centring_hook(scale(name))).remove)
        yield


def centring_hook(target: float) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """A forward hook that centres a Conv3d by its own output and returns the corrected output."""

    @torch.no_grad()
    def centre(layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> Tensor:
        assert isinstance(layer, nn.Conv3d)
        assert layer.bias is not None
        mean = output.mean((0, 2, 3, 4))
        gain = target / output.std((0, 2, 3, 4)).clamp(min=1e-4)
        layer.weight.mul_(gain[:, None, None, None, None])
        layer.bias.copy_((layer.bias - mean) * gain)
        channel = (None, slice(None), None, None, None)
        return (output - mean[channel]) * gain[channel]

    return centre
