"""What every kernel computes, in plain PyTorch: it serves the CPU and is the oracle of the tests."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention

__all__ = ["EPS", "Multiply", "attend", "encode_context", "fused_linear", "normalised", "product"]

EPS = 1e-5

Multiply = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(input [..., K], weight [N, K], bias [N]) -> [..., N]; what the functions here multiply with."""


def encode_context(
    vlm: Tensor,
    dino: Tensor,
    vlm_weight: Tensor,
    dino_weight: Tensor,
    vlm_sums: Tensor,  # noqa: ARG001
    dino_sums: Tensor,  # noqa: ARG001
    table: Tensor,
    lengths: Tensor,
    *,
    multiply: Multiply = linear,
) -> Tensor:
    """The tokens of both encoders, normalised, projected and placed: [B, M + N, hidden_dim], DINO's first.

    `vlm` [B, N, vlm_dim] and `dino` [B, M, dino_dim] with weights [hidden_dim, dim] that hold the norms'
    scale, their row sums [hidden_dim] fp32 (for a kernel that multiplies before it normalises), and `table`
    [M + N, hidden_dim] fp32, biases and positions. Rows of `vlm` from `lengths` [B] int32 on may hold
    anything and are taken as zeros.
    """
    keep = torch.arange(vlm.shape[1], device=vlm.device) < lengths[:, None]
    if not bool(keep.all()):
        vlm = torch.where(keep[:, :, None], vlm, 0.0)
    streams = ((dino, dino_weight), (vlm, vlm_weight))
    context = torch.cat([multiply(normalised(x), weight, None) for x, weight in streams], dim=1)
    return (context + table).to(vlm.dtype)


def normalised(hidden_states: Tensor) -> Tensor:
    """Every row of [..., K] with mean zero and variance one."""
    return layer_norm(hidden_states, hidden_states.shape[-1:], eps=EPS)


def product(hidden_states: Tensor, weight: Tensor, bias: Tensor, *, multiply: Multiply = linear) -> Tensor:
    """`hidden_states` [R, K] times `weight` [N, K] plus `bias` [N] fp32: [R, N] of the input's type."""
    return multiply(hidden_states, weight, bias.to(weight.dtype))


def fused_linear(
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor,
    sums: Tensor | None = None,
    residual: Tensor | None = None,
    activation: bool = False,
    *,
    multiply: Multiply = linear,
) -> tuple[Tensor, Tensor]:
    """A linear layer with the norm before it, the GELU after it and the residual around it folded in.

    `hidden_states` [R, K]; `weight` [N, K]; `bias` [N] fp32. With `sums` [N] fp32, the row sums of a weight
    that holds the norm's scale, the input is normalised. `residual` [R or a divisor of R, N] fp32 is added.
    Returns [R, N] of the input's type, and the same as fp32 [R, N] with a residual, [0] without one.
    """
    if sums is not None:
        hidden_states = normalised(hidden_states)
    if hidden_states.dtype == torch.float32:
        output = multiply(hidden_states, weight, bias)
    else:
        output = multiply(hidden_states, weight, None).float() + bias
    if activation:
        output = gelu(output)
    if residual is None:
        return output.to(hidden_states.dtype), output.new_empty(0)
    output = (output.view(-1, *residual.shape) + residual).flatten(0, 1)
    # An operator's results must not share memory.
    return output.to(hidden_states.dtype, copy=True), output


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
    *,
    project: Callable[..., tuple[Tensor, Tensor]] = fused_linear,
) -> tuple[Tensor, Tensor]:
    """Attention, its output projection and the residual around both.

    `query` [B or 1, Q, ...] and `keys_values` [B, T, ...] hold the query, the keys and the values in
    hidden_dim columns from those named on, split into `heads`; `weight` is [hidden_dim, hidden_dim]. Of the
    keys of row b the first `always` + `lengths[b]` ([B] int32) take part. `bias` [hidden_dim] and `residual`
    [B * Q or Q, hidden_dim] are fp32. Returns [B * Q, hidden_dim] of the input's type and the same as fp32.
    """
    width = weight.shape[0]
    batch, total = keys_values.shape[:2]
    columns = ((query, query_column), (keys_values, key_column), (keys_values, value_column))
    q, k, v = (
        x[..., first : first + width].reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x, first in columns
    )
    keep = torch.arange(total, device=query.device) < always + lengths[:, None]
    q = q.expand(batch, -1, -1, -1)
    mask = None if bool(keep.all()) else keep[:, None, None, :]
    mixed = scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2).flatten(0, 1)
    return project(mixed, weight, bias, residual=residual)
