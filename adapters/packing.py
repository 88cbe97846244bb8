"""An adapter's weights in the form that the fused forward reads, packed once.

What depends on weights alone is computed here: the first layer's self-attention and cross-attention query,
the norms' scales inside the products that follow them, the keys and values of all layers as one product, and
the queries that the context meets first.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from foresight.adapters.adapter import Adapter
from foresight.adapters.body import AdapterBody
from foresight.adapters.config import AdapterConfig, Grid
from foresight.adapters.layer import AdapterLayer
from foresight.kernels import implementation

__all__ = [
    "PACKED_ARCHITECTURES",
    "PackedAdapter",
    "PackedLayer",
    "PackedLinear",
    "PackedQueries",
    "first_queries",
    "pack_adapter",
    "positions_table",
]

PACKED_ARCHITECTURES = ("query", "cross_attention")


class PackedLinear(nn.Module):
    """`weight` [N, K], or [0] once given up; `bias` [N] fp32.

    With `sums` [N] fp32, the weight's row sums, the input is normalised first.
    """

    weight: Tensor
    bias: Tensor
    sums: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor, sums: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.register_buffer("sums", sums)


class PackedQueries(nn.Module):
    """What makes a layer's query of the context: its self-attention and the projection after it."""

    def __init__(self, *, qkv: PackedLinear, out: PackedLinear, query: PackedLinear) -> None:
        super().__init__()
        self.qkv, self.out, self.query = qkv, out, query


class PackedLayer(nn.Module):
    """One layer's products; the first layer has no `queries`, because its query is a constant."""

    def __init__(
        self, *, queries: PackedQueries | None, cross_out: PackedLinear, up: PackedLinear, down: PackedLinear
    ) -> None:
        super().__init__()
        self.queries, self.cross_out, self.up, self.down = queries, cross_out, up, down


class PackedAdapter(nn.Module):
    """All tensors of the fused forward: `hidden_states` [Q, h] fp32 and `query` [1, Q, h] are constants."""

    hidden_states: Tensor
    query: Tensor

    def __init__(
        self,
        config: AdapterConfig,
        *,
        vlm: PackedLinear,
        dino: PackedLinear,
        keys_values: PackedLinear,
        hidden_states: Tensor,
        query: Tensor,
        layers: list[PackedLayer],
        out: PackedLinear,
    ) -> None:
        super().__init__()
        self.config = config
        self.vlm, self.dino, self.keys_values, self.out = vlm, dino, keys_values, out
        self.layers = nn.ModuleList(layers)
        self.register_buffer("hidden_states", hidden_states)
        self.register_buffer("query", query)

    def forward(
        self, vlm: Tensor, dino: Tensor, table: Tensor, lengths: Tensor, kernels: Any = None
    ) -> Tensor:
        """Map [B, N, vlm_dim] and [B, M, dino_dim] to [B, Q, output_dim].

        `table` [M + N, h] fp32 is what `positions_table` makes; only the first `lengths` [B] int32 of the
        VLM's tokens count. `kernels` are those of the features' device unless given.
        """
        kernels, heads, width = kernels or implementation(vlm), self.config.num_heads, self.config.hidden_dim
        streams = (self.vlm.weight, self.dino.weight, self.vlm.sums, self.dino.sums)
        context = kernels.encode_context(vlm, dino, *streams, table, lengths)
        kv = kernels.product(context.flatten(0, 1), self.keys_values.weight, self.keys_values.bias)
        kv = kv.view(*context.shape[:2], -1)
        hidden_states, full, query = self.query[0], self.hidden_states, self.query
        queries, always = self.config.num_queries, dino.shape[1]
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, PackedLayer)
            if layer.queries is not None:
                qkv = _linear(kernels, hidden_states, layer.queries.qkv)[0].view(-1, queries, 3 * width)
                out, columns = layer.queries.out, (heads, 0, width, 2 * width, queries)
                hidden_states, full = kernels.attend(qkv, qkv, out.weight, out.bias, full, lengths, *columns)
                query = _linear(kernels, hidden_states, layer.queries.query)[0].view(-1, queries, width)
            out, columns = layer.cross_out, (heads, 0, 2 * index * width, (2 * index + 1) * width, always)
            hidden_states, full = kernels.attend(query, kv, out.weight, out.bias, full, lengths, *columns)
            raised = _linear(kernels, hidden_states, layer.up, activation=True)[0]
            hidden_states, full = _linear(kernels, raised, layer.down, residual=full)
        output = _linear(kernels, hidden_states, self.out)[0].view(-1, queries, self.config.output_dim)
        if self.config.output_grid is None:
            return output
        return output.mT.contiguous().view(output.shape[0], -1, *self.config.output_grid)

    def give_up_weights(self) -> None:
        """Keep no product's weight, for whoever has them arranged otherwise; `forward` cannot be called any more."""
        self.change_weights(lambda weight: weight.new_empty(0))

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor that is kept."""
        return self.buffers()

    def change_weights(self, change: Callable[[Tensor], Tensor]) -> None:
        """Replace every product's weight by what `change` makes of it."""
        for linear in self.modules():
            if isinstance(linear, PackedLinear):
                linear.weight = change(linear.weight)


def _linear(
    kernels: Any, x: Tensor, linear: PackedLinear, *, residual: Tensor | None = None, activation: bool = False
) -> tuple[Tensor, Tensor]:
    pair: tuple[Tensor, Tensor] = kernels.fused_linear(
        x, linear.weight, linear.bias, linear.sums, residual, activation
    )
    return pair


@torch.no_grad()
def pack_adapter(adapter: Adapter, device: torch.device, dtype: torch.dtype) -> PackedAdapter:
    """Pack the weights of an adapter of `PACKED_ARCHITECTURES` for `device`, products in `dtype`.

    Everything is folded in fp32 and rounded once. Raises ValueError for an adapter of another architecture.
    """
    body = getattr(adapter, "body", None)
    if not isinstance(body, AdapterBody):
        known = " and ".join(PACKED_ARCHITECTURES)
        raise ValueError(f"architecture {adapter.config.architecture!r}: only {known} pack")

    def fold(linear: nn.Module, norm: nn.Module | None = None) -> PackedLinear:
        weight, bias = _values(linear)
        return _packed(weight, bias, norm, device, dtype)

    def fold_queries(layer: AdapterLayer) -> PackedQueries:
        return PackedQueries(
            qkv=fold(layer.self_attention.qkv, layer.self_norm),
            out=fold(layer.self_attention.out),
            query=fold(layer.cross_attention.q, layer.cross_norm),
        )

    layers = _layers(body)
    pairs = [_values(layer.cross_attention.kv) for layer in layers]
    weight, bias = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    hidden_states, query = first_queries(body)
    return PackedAdapter(
        adapter.config,
        vlm=fold(body.context.vlm.proj, body.context.vlm.norm),
        dino=fold(body.context.dino.proj, body.context.dino.norm),
        keys_values=_packed(weight, bias, None, device, dtype),
        hidden_states=hidden_states.to(device),
        query=query[None].to(device, dtype),
        layers=[
            PackedLayer(
                queries=fold_queries(layer) if index else None,
                cross_out=fold(layer.cross_attention.out),
                up=fold(layer.feed_forward.up, layer.ff_norm),
                down=fold(layer.feed_forward.down),
            )
            for index, layer in enumerate(layers)
        ],
        out=fold(body.out_proj, body.norm),
    )


def _layers(body: AdapterBody) -> list[AdapterLayer]:
    return [layer for layer in body.layers if isinstance(layer, AdapterLayer)]


def _values(module: nn.Module) -> tuple[Tensor, Tensor]:
    weight, bias = (module.get_parameter(name).detach().float() for name in ("weight", "bias"))
    return weight, bias


def _packed(
    weight: Tensor, bias: Tensor, norm: nn.Module | None, device: torch.device, dtype: torch.dtype
) -> PackedLinear:
    if norm is None:
        return PackedLinear(weight=weight.to(device, dtype), bias=bias.to(device))
    scale, shift = _values(norm)
    bias = bias + weight @ shift
    # The sums are those of the rounded weight, because that is what the product reads.
    rounded = (weight * scale).to(dtype)
    return PackedLinear(
        weight=rounded.to(device), bias=bias.to(device), sums=rounded.float().sum(1).to(device)
    )


@torch.no_grad()
def first_queries(body: AdapterBody) -> tuple[Tensor, Tensor]:
    """The learned queries after the first layer's self-attention, and their cross-attention query.

    Both are [Q, hidden_dim] fp32.
    """
    layer, queries = copy.deepcopy(_layers(body)[0]).float(), body.queries.detach().float()
    hidden_states = queries + layer.self_attention(layer.self_norm(queries)[None])[0]
    return hidden_states, layer.cross_attention.q(layer.cross_norm(hidden_states))


@torch.no_grad()
def positions_table(
    body: AdapterBody,
    packed: PackedAdapter,
    tokens: tuple[int, int],
    grids: tuple[Grid | None, Grid | None],
) -> Tensor:
    """What is added to every context token [M + N, h] fp32: its stream's bias, and its position on a grid.

    `tokens` are (M, N), `grids` those of DINO and the VLM. Raises ValueError for a grid beyond the adapter's.
    """
    parts = []
    streams = ((body.context.dino, packed.dino), (body.context.vlm, packed.vlm))
    for (stream, linear), count, grid in zip(streams, tokens, grids, strict=True):
        part = linear.bias.expand(count, -1)
        if grid is not None:
            places = stream.positions(grid).float().to(part.device)
            part = part + pad(places, (0, 0, 0, count - places.shape[0]))
        parts.append(part)
    return torch.cat(parts)
