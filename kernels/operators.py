# torch.library leaves the functions that it registers untyped.
# mypy: disable-error-code="untyped-decorator,no-any-return"
"""The kernels as PyTorch operators, which ahead-of-time compilation traces into; imported where CUDA is used.

Launches are looked up by device and shape, both known when a graph is captured or a program is compiled.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import triton_op

from foresight.kernels import reference
from foresight.kernels.attention import launch_attend
from foresight.kernels.context import launch_context
from foresight.kernels.launch import Launch, find_launch, find_table
from foresight.kernels.linear import launch_linear
from foresight.kernels.product import launch_product

__all__ = ["attend", "encode_context", "fused_linear", "product"]


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def _launch(kernel: str, *shape: int) -> Launch:
    return find_launch(_device_name(), kernel, shape)


def _programmatic() -> int:
    # Overlapping launches came with compute capability 9.0.
    capable = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)
    return find_table(_device_name()).programmatic if capable else 0


@triton_op("foresight::encode_context", mutates_args={})
def encode_context(
    vlm: Tensor,
    dino: Tensor,
    vlm_weight: Tensor,
    dino_weight: Tensor,
    vlm_sums: Tensor,
    dino_sums: Tensor,
    table: Tensor,
    lengths: Tensor,
) -> Tensor:
    batch, vlm_tokens, vlm_dim = vlm.shape
    vlm_rows, dino_rows, width = batch * vlm_tokens, batch * dino.shape[1], vlm_weight.shape[0]
    return launch_context(
        vlm,
        dino,
        vlm_weight,
        dino_weight,
        vlm_sums,
        dino_sums,
        table,
        lengths,
        project=_launch("project", vlm_rows, dino_rows, vlm_dim, width),
        finish=_launch("finish", vlm_rows + dino_rows, vlm_dim),
        programmatic=_programmatic(),
    )


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


@triton_op("foresight::product", mutates_args={})
def product(hidden_states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    launch = _launch("product", hidden_states.shape[0], weight.shape[1], weight.shape[0])
    return launch_product(hidden_states, weight, bias, launch=launch, programmatic=_programmatic())


@product.register_fake
def _(hidden_states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # noqa: ARG001
    return hidden_states.new_empty((hidden_states.shape[0], weight.shape[0]))


@triton_op("foresight::fused_linear", mutates_args={})
def fused_linear(
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor,
    sums: Tensor | None = None,
    residual: Tensor | None = None,
    activation: bool = False,
) -> tuple[Tensor, Tensor]:
    launch = _launch("linear", hidden_states.shape[0], weight.shape[1], weight.shape[0])
    return launch_linear(
        hidden_states, weight, bias, sums, residual, activation, launch=launch, programmatic=_programmatic()
    )


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


@triton_op("foresight::attend", mutates_args={})
def attend(
    query: Tensor,
    keys_values: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor,
    lengths: Tensor,
    heads: int,
    query_column: int,
    key_column: int,
    value_column: int,
    always: int,
    query_weight: Tensor | None = None,
    query_bias: Tensor | None = None,
    query_sums: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    batch, keys = keys_values.shape[:2]
    queries, width = query.shape[1], weight.shape[0]
    return launch_attend(
        query,
        keys_values,
        weight,
        bias,
        residual,
        lengths,
        heads,
        query_column,
        key_column,
        value_column,
        always,
        query_weight,
        query_bias,
        query_sums,
        attend=_launch("attend" if query_weight is None else "attend_made", queries, heads, keys, batch),
        project=_launch("linear", batch * queries, width, width),
        programmatic=_programmatic(),
    )


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
    query_weight: Tensor | None = None,  # noqa: ARG001
    query_bias: Tensor | None = None,  # noqa: ARG001
    query_sums: Tensor | None = None,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    shape = (keys_values.shape[0] * query.shape[1], weight.shape[0])
    return query.new_empty(shape), bias.new_empty(shape)


encode_context.register_kernel("cpu")(reference.encode_context)
product.register_kernel("cpu")(reference.product)
fused_linear.register_kernel("cpu")(reference.fused_linear)
attend.register_kernel("cpu")(reference.attend)
