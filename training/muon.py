"""Muon, the optimiser that steps along the orthogonalised momentum of each weight matrix.

`torch.optim.Muon` refuses convolution kernels and cannot be captured in a CUDA graph with a changing rate, so this
one treats kernels as matrices, batches equal shapes, and reads its learning rate from a tensor.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Muon", "orthogonalise", "split_parameters"]


def orthogonalise(matrices: Tensor) -> Tensor:
    """Replace the singular values of [..., rows, columns] by about one, in bfloat16.

    Five Newton-Schulz steps with the quintic of Jordan et al., "Muon: an optimizer for hidden layers" (2024).
    """
    x: Tensor = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for weights of two or more dimensions, all but the first flattened into columns.

    `learning_rate` is a float32 scalar tensor on the parameters' device, read at every step. The update's root mean
    square is 0.2, AdamW's usual size, so that rates of the two compare (Liu et al., arXiv 2502.16982).
    """

    def __init__(self, params: Iterable[Tensor], learning_rate: Tensor, momentum: float = 0.95) -> None:
        super().__init__(list(params), {})
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.by_shape: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
        for parameter in self.param_groups[0]["params"]:
            if parameter.ndim < 2:
                raise ValueError(
                    f"a parameter of shape {tuple(parameter.shape)}: Muon needs two dimensions or more"
                )
            self.by_shape[(parameter.shape[0], parameter[0].numel())].append(parameter)
            self.state[parameter]["momentum"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, _closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; capturable in a CUDA graph."""
        for (rows, columns), group in self.by_shape.items():
            parameters = [parameter for parameter in group if parameter.grad is not None]
            if not parameters:
                continue
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            momenta = [self.state[parameter]["momentum"] for parameter in parameters]
            torch._foreach_lerp_(momenta, gradients, 1 - self.momentum)
            nesterov = torch._foreach_lerp(gradients, momenta, self.momentum)
            updates = orthogonalise(torch.stack([update.reshape(rows, columns) for update in nesterov]))
            updates = updates.float() * (-0.2 * max(rows, columns) ** 0.5 * self.learning_rate)
            shaped = [
                update.reshape(parameter.shape)
                for update, parameter in zip(updates.unbind(0), parameters, strict=True)
            ]
            torch._foreach_add_(parameters, shaped)


def split_parameters(module: nn.Module, adamw: tuple[str, ...]) -> tuple[list[Tensor], list[Tensor]]:
    """Split trainable parameters into those for Muon and those for AdamW.

    Muon takes the weights of linear and convolution layers, except in layers whose name ends with one of `adamw`
    (first and last layers, which AdamW trains better).
    """
    matrices: list[Tensor] = []
    for name, layer in module.named_modules():
        hidden = isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
        if hidden and layer.weight.requires_grad and not name.endswith(adamw):
            matrices.append(layer.weight)
    chosen = {id(weight) for weight in matrices}
    rest: list[Tensor] = [
        weight for weight in module.parameters() if weight.requires_grad and id(weight) not in chosen
    ]
    return matrices, rest
