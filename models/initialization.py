"""Modules without their random initial values, which loading replaces and which cost seconds at full size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["fill_with_noise", "skip_random_values"]

_RANDOM_FILLS = frozenset(
    (
        Tensor.normal_,
        Tensor.uniform_,
        nn.init.kaiming_normal_,
        nn.init.kaiming_uniform_,
        nn.init.normal_,
        nn.init.trunc_normal_,
        nn.init.uniform_,
        nn.init.xavier_normal_,
        nn.init.xavier_uniform_,
    )
)


class skip_random_values(TorchFunctionMode):  # noqa: N801 - used like a function: `with skip_random_values():`
    """Inside this context random fills do nothing, so that modules are built at once.

    Values that are computed (rotary tables, ones, zeros) are made as ever. The meta device would do the same
    at the price of importing torch's compiler, and would leave those values to be mended.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return the tensor as it is for a random fill, and call anything else."""
        if func in _RANDOM_FILLS:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def fill_with_noise(module: nn.Module, *, seed: int = 0) -> None:
    """Give a module cheap random weights, for latency work.

    Matrices are normal with variance 1 / fan-in, so that activations stay finite in 16 bits; biases are 0,
    other vectors 1. Buffers and what is not learned stay.
    """
    generator: torch.Generator | None = None
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if generator is None:
                generator = torch.Generator(parameter.device).manual_seed(seed)
            if parameter.dim() > 1:
                fan_in = parameter.numel() // parameter.shape[0]
                parameter.normal_(std=fan_in**-0.5, generator=generator)
            elif parameter.dim() == 1:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
