"""What `foresight.kernels.reference` computes, on a CPU by oneDNN with weights in its own order.

PyTorch multiplies fp32 matrices with MKL, which took more than twice as long on the AMD processor where both were
timed. GELU and residual ride along, because every pass of its own wakes the other cores once more.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from foresight.kernels import reference

__all__ = ["attend", "available", "encode_context", "fused_linear", "product", "reorder"]


def available() -> bool:
    """Whether this build of PyTorch has oneDNN and the operators that its own compiler calls it by."""
    names = ("_linear_pointwise", "_reorder_linear_weight")
    built: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return built and all(hasattr(torch.ops.mkldnn, name) for name in names)


def reorder(weight: Tensor) -> Tensor:
    """A weight [N, K] in the order that oneDNN multiplies with, opaque but for its shape and dtype."""
    ordered: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return ordered


def _multiply(hidden_states: Tensor, weight: Tensor, bias: Tensor | None, post: str = "none") -> Tensor:
    output: Tensor = torch.ops.mkldnn._linear_pointwise(hidden_states, weight, bias, post, [], "none")
    return output


def fused_linear(
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor,
    sums: Tensor | None = None,
    residual: Tensor | None = None,
    activation: bool = False,
) -> tuple[Tensor, Tensor]:
    """See `foresight.kernels.reference.fused_linear`; the two results may share memory."""
    if hidden_states.dtype != torch.float32 or (activation and residual is not None):
        return reference.fused_linear(
            hidden_states, weight, bias, sums, residual, activation, multiply=_multiply
        )
    if sums is not None:
        hidden_states = reference.normalised(hidden_states)
    if residual is None:
        output = _multiply(hidden_states, weight, bias, "gelu" if activation else "none")
        return output, output.new_empty(0)
    if residual.shape[0] < hidden_states.shape[0]:
        residual = residual.repeat(hidden_states.shape[0] // residual.shape[0], 1)
    output = torch.ops.mkldnn._linear_pointwise.binary(hidden_states, residual, weight, bias, "add")
    return output, output


encode_context = partial(reference.encode_context, multiply=_multiply)
product = partial(reference.product, multiply=_multiply)
attend = partial(reference.attend, project=fused_linear)
