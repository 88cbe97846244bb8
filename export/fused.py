"""The adapter on the project's fused kernels, as a module that ahead-of-time compilation traces.

Weights that follow a norm hold its scale, the first layer's constants are computed once, and the keys and
values of all layers come from one product. On a CPU the kernels' references compute the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foresight.adapters import Adapter, AdapterBody, AdapterConfig
from foresight.adapters.config import HEAD_DIMS
from foresight.adapters.context import FeatureStream
from foresight.export.portable import GridPositions, first_hidden_states
from foresight.kernels import implementation

__all__ = ["FusedAdapter", "can_fuse"]


def can_fuse(config: AdapterConfig) -> bool:
    """Whether the fused kernels compute an adapter of this configuration."""
    return config.architecture in ("query", "cross_attention") and config.head_dim in HEAD_DIMS


class FusedAdapter(nn.Module):
    """Computes what `adapter` does, with products in `dtype` and sums in fp32.

    Takes the tensors of `ENGINE_INPUTS`, features in `dtype`. Raises ValueError for an adapter of another
    architecture than those of `can_fuse`.
    """

    hidden_states: Tensor
    query: Tensor

    def __init__(self, adapter: Adapter, dtype: torch.dtype) -> None:
        super().__init__()
        body = getattr(adapter, "body", None)
        if not isinstance(body, AdapterBody):
            raise ValueError(f"architecture {adapter.config.architecture!r}: has no fused form")
        self.config = adapter.config
        self.vlm, self.dino = (_Stream(each, dtype) for each in (body.context.vlm, body.context.dino))
        layers = [body.get_submodule(f"layers.{index}") for index in range(len(body.layers))]
        self.layers = nn.ModuleList(
            _Layer(each, dtype, first=index == 0) for index, each in enumerate(layers)
        )
        self.keys_values = _Folded.of(
            [each.get_submodule("cross_attention.kv") for each in layers], None, dtype
        )
        self.out = _Folded.of([body.out_proj], body.norm, dtype)
        with torch.no_grad():
            hidden_states, query = first_hidden_states(body)
        self.register_buffer("hidden_states", hidden_states)
        self.register_buffer("query", query[None].to(dtype))

    def forward(
        self,
        vlm_hidden_states: Tensor,
        dino_hidden_states: Tensor,
        vlm_grid: Tensor,
        dino_grid: Tensor,
        vlm_lengths: Tensor,
    ) -> Tensor:
        """See `Adapter.forward`; the grids are int64 [3], the lengths int64 [B]."""
        kernels, lengths = implementation(vlm_hidden_states), vlm_lengths.to(torch.int32)
        heads, width, queries = self.config.num_heads, self.config.hidden_dim, self.config.num_queries
        vlm, dino, always = self.vlm.folded, self.dino.folded, dino_hidden_states.shape[1]
        table = torch.cat(
            [self.dino.table(always, dino_grid), self.vlm.table(vlm_hidden_states.shape[1], vlm_grid)]
        )
        streams = (vlm.weight, dino.weight, vlm.sums, dino.sums)
        context = kernels.encode_context(vlm_hidden_states, dino_hidden_states, *streams, table, lengths)
        key_value = kernels.product(context.flatten(0, 1), self.keys_values.weight, self.keys_values.bias)
        key_value = key_value.view(*context.shape[:2], -1)
        hidden_states, full, query = self.query[0], self.hidden_states, self.query
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, _Layer)
            if index:
                qkv = layer.qkv(hidden_states)[0].view(-1, queries, 3 * width)
                columns = (heads, 0, width, 2 * width, queries)
                out = layer.self_out
                hidden_states, full = kernels.attend(qkv, qkv, out.weight, out.bias, full, lengths, *columns)
                query = layer.query(hidden_states)[0].view(-1, queries, width)
            columns = (heads, 0, 2 * index * width, (2 * index + 1) * width, always)
            out = layer.cross_out
            hidden_states, full = kernels.attend(
                query, key_value, out.weight, out.bias, full, lengths, *columns
            )
            raised = layer.up(hidden_states, activation=True)[0]
            hidden_states, full = layer.down(raised, full)
        output: Tensor = self.out(hidden_states)[0].view(-1, queries, self.config.output_dim)
        if self.config.output_grid is None:
            return output
        return output.transpose(1, 2).contiguous().view(output.shape[0], -1, *self.config.output_grid)


class _Folded(nn.Module):
    """A product [N, K] with fp32 bias, behind a norm if it has `sums`, the weight's row sums."""

    weight: Tensor
    bias: Tensor
    sums: Tensor | None

    @classmethod
    @torch.no_grad()
    def of(cls, linears: list[nn.Module], norm: nn.Module | None, dtype: torch.dtype) -> _Folded:
        """One or several linear layers side by side, and the norm before them."""
        folded = cls()
        weight, bias = (
            torch.cat([each.get_parameter(name).float() for each in linears]) for name in ("weight", "bias")
        )
        sums = None
        if norm is not None:
            bias = bias + weight @ norm.get_parameter("bias").float()
            weight = (weight * norm.get_parameter("weight").float()).to(dtype)
            # Of the rounded weight, because that is what the product reads.
            sums = weight.float().sum(1)
        folded.register_buffer("weight", weight.to(dtype))
        folded.register_buffer("bias", bias)
        folded.register_buffer("sums", sums)
        return folded

    def forward(
        self, hidden_states: Tensor, residual: Tensor | None = None, activation: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The product of [R, K], as [R, N] in its own type and, with a residual, in fp32."""
        pair: tuple[Tensor, Tensor] = implementation(hidden_states).fused_linear(
            hidden_states, self.weight, self.bias, self.sums, residual, activation
        )
        return pair


class _Stream(nn.Module):
    def __init__(self, stream: FeatureStream, dtype: torch.dtype) -> None:
        super().__init__()
        self.folded = _Folded.of([stream.proj], stream.norm, dtype)
        self.positions = GridPositions(stream.positions)

    def table(self, tokens: int, grid: Tensor) -> Tensor:
        """What every token's projection is shifted by, [tokens, hidden_dim] fp32."""
        table: Tensor = self.folded.bias + self.positions(tokens, grid)
        return table


class _Layer(nn.Module):
    qkv: _Folded
    self_out: _Folded
    query: _Folded

    def __init__(self, layer: nn.Module, dtype: torch.dtype, *, first: bool) -> None:
        super().__init__()

        def fold(name: str, norm: str | None = None) -> _Folded:
            before = None if norm is None else layer.get_submodule(norm)
            return _Folded.of([layer.get_submodule(name)], before, dtype)

        if not first:
            self.qkv = fold("self_attention.qkv", "self_norm")
            self.self_out = fold("self_attention.out")
            self.query = fold("cross_attention.q", "cross_norm")
        self.cross_out = fold("cross_attention.out")
        self.up = fold("feed_forward.up", "ff_norm")
        self.down = fold("feed_forward.down")
