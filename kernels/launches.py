"""What `foresight.kernels.reference` computes, by Triton: the table is asked and the kernels are launched."""

from __future__ import annotations

import torch
from torch import Tensor

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
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0):
        return 0
    return find_table(_device_name()).programmatic


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
    """See `foresight.kernels.reference.encode_context`."""
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
        finish=_launch("finish", vlm_rows + dino_rows, vlm_dim, width),
        programmatic=_programmatic(),
    )


def product(hidden_states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """See `foresight.kernels.reference.product`."""
    launch = _launch("product", hidden_states.shape[0], weight.shape[1], weight.shape[0])
    return launch_product(hidden_states, weight, bias, launch=launch, programmatic=_programmatic())


def fused_linear(
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor,
    sums: Tensor | None = None,
    residual: Tensor | None = None,
    activation: bool = False,
) -> tuple[Tensor, Tensor]:
    """See `foresight.kernels.reference.fused_linear`."""
    launch = _launch("linear", hidden_states.shape[0], weight.shape[1], weight.shape[0])
    return launch_linear(
        hidden_states, weight, bias, sums, residual, activation, launch=launch, programmatic=_programmatic()
    )


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
) -> tuple[Tensor, Tensor]:
    """See `foresight.kernels.reference.attend`."""
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
        attend=_launch("attend", queries, heads, keys, batch),
        project=_launch("linear", batch * queries, width, width),
        programmatic=_programmatic(),
    )
