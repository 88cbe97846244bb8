# torch.library leaves the functions that it registers untyped.
# mypy: disable-error-code="untyped-decorator,no-any-return"
"""The kernels as PyTorch operators, which ahead-of-time compilation traces into; imported where CUDA is used.

Launches are looked up by device and shape, both known when a graph is captured or a program is compiled.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.library import triton_op

from foresight.kernels import launches, reference

__all__ = ["attend", "encode_context", "fused_linear", "product"]

encode_context: Any = triton_op("foresight::encode_context", launches.encode_context, mutates_args={})
product: Any = triton_op("foresight::product", launches.product, mutates_args={})
fused_linear: Any = triton_op("foresight::fused_linear", launches.fused_linear, mutates_args={})
attend: Any = triton_op("foresight::attend", launches.attend, mutates_args={})

encode_context.register_kernel("cpu")(reference.encode_context)
product.register_kernel("cpu")(reference.product)
fused_linear.register_kernel("cpu")(reference.fused_linear)
attend.register_kernel("cpu")(reference.attend)


@encode_context.register_fake
def _(
    vlm: Tensor,
    dino: Tensor,
    vlm_weight: Tensor,
    dino_weight: Tensor,  # noqa: ARG001
    vlm_sums: Tensor,  # noqa: ARG001
    dino_sums: Tensor,  # noqa: ARG001
    table: Tensor,  # noqa: ARG001
    lengths: Tensor,  # noqa: ARG001
) -> Tensor:
    return vlm.new_empty((vlm.shape[0], vlm.shape[1] + dino.shape[1], vlm_weight.shape[0]))


@product.register_fake
def _(hidden_states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # noqa: ARG001
    return hidden_states.new_empty((hidden_states.shape[0], weight.shape[0]))


@fused_linear.register_fake
def _(
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor,
    sums: Tensor | None = None,  # noqa: ARG001
    residual: Tensor | None = None,
    activation: bool = False,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    shape = (hidden_states.shape[0], weight.shape[0])
    full = bias.new_empty(shape if residual is not None else (0,))
    return hidden_states.new_empty(shape), full


@attend.register_fake
def _(
    query: Tensor,
    keys_values: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor,  # noqa: ARG001
    lengths: Tensor,  # noqa: ARG001
    heads: int,  # noqa: ARG001
    query_column: int,  # noqa: ARG001
    key_column: int,  # noqa: ARG001
    value_column: int,  # noqa: ARG001
    always: int,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    shape = (keys_values.shape[0] * query.shape[1], weight.shape[0])
    return query.new_empty(shape), bias.new_empty(shape)
