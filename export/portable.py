"""An adapter as one graph for every target: grids and true lengths are tensors, nothing is checked inside.

The adapters take grids as Python numbers, which a graph would freeze. Here they are inputs, so that one file
serves every grid and number of tokens. What depends on weights alone is computed once.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from foresight.adapters import Adapter, AdapterBody, Grid
from foresight.adapters.context import FeatureContext, FeatureStream
from foresight.adapters.grid_streams import GridStreams
from foresight.adapters.layer import AdapterLayer
from foresight.adapters.packing import first_queries
from foresight.adapters.pooled import PooledFeatures
from foresight.adapters.positions import FactorisedPositions

__all__ = ["GridPositions", "PortableAdapter"]

# Longer than any axis of a token grid.
_LONGEST_AXIS = 256


class PortableAdapter(nn.Module):
    """The same function as `adapter`, to be traced; the adapter itself stays as it is.

    Takes vlm_hidden_states [B, N, vlm_dim], dino_hidden_states [B, M, dino_dim], and vlm_grid, dino_grid and
    vlm_lengths as `engine_inputs` makes them. Returns what the adapter returns.
    """

    def __init__(self, adapter: Adapter) -> None:
        super().__init__()
        self.adapter = copy.deepcopy(adapter).eval().requires_grad_(False)
        for module in list(self.adapter.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, FeatureContext):
                    setattr(module, name, _Context(child))
                elif isinstance(child, PooledFeatures):
                    setattr(module, name, _Pooled(child))
                elif isinstance(child, GridStreams):
                    setattr(module, name, _Streams(child))
        _fold_first_self_attention(self.adapter)

    def forward(
        self,
        vlm_hidden_states: Tensor,
        dino_hidden_states: Tensor,
        vlm_grid: Tensor,
        dino_grid: Tensor,
        vlm_lengths: Tensor,
    ) -> Tensor:
        """See the class."""
        output: Tensor = self.adapter(
            vlm_hidden_states,
            dino_hidden_states,
            vlm_grid=vlm_grid,
            dino_grid=dino_grid,
            vlm_lengths=vlm_lengths,
        )
        return output


class _Context(nn.Module):
    def __init__(self, context: FeatureContext) -> None:
        super().__init__()
        self.vlm, self.dino = _Stream(context.vlm), _Stream(context.dino)

    def forward(
        self,
        vlm_hidden_states: Tensor,
        dino_hidden_states: Tensor,
        *,
        vlm_grid: Tensor,
        dino_grid: Tensor,
        vlm_lengths: Tensor,
    ) -> tuple[Tensor, Tensor]:
        dino = self.dino(dino_hidden_states, dino_grid)
        keep = _keep(vlm_hidden_states, vlm_lengths)
        # After the projection, row by row, because that is narrower than the features.
        vlm = torch.where(keep[:, :, None], self.vlm(vlm_hidden_states, vlm_grid), 0.0)
        all_dino = torch.ones_like(dino[:, :, 0], dtype=torch.bool)
        return torch.cat([dino, vlm], dim=1), torch.cat([all_dino, keep], dim=1)


class _Stream(nn.Module):
    def __init__(self, stream: FeatureStream) -> None:
        super().__init__()
        self.norm, self.proj, self.positions = stream.norm, stream.proj, GridPositions(stream.positions)

    def forward(self, hidden_states: Tensor, grid: Tensor) -> Tensor:
        projected: Tensor = self.proj(self.norm(hidden_states))
        positions: Tensor = self.positions(hidden_states.shape[1], grid)
        return projected + positions


class GridPositions(nn.Module):
    """The factorised positions of the first tokens of a grid, zeros for the tokens past it."""

    def __init__(self, positions: FactorisedPositions) -> None:
        super().__init__()
        self.time, self.row, self.column = positions.time, positions.row, positions.column

    def forward(self, tokens: int, grid: Tensor) -> Tensor:
        steps = torch.arange(tokens, device=grid.device)
        rows, columns = grid[1].clamp(min=1), grid[2].clamp(min=1)
        time = (steps // (rows * columns)).clamp(max=self.time.shape[0] - 1)
        row = (steps // columns % rows).clamp(max=self.row.shape[0] - 1)
        column = (steps % columns).clamp(max=self.column.shape[0] - 1)
        embeddings = self.time[time] + self.row[row] + self.column[column]
        placed: Tensor = torch.where((steps < grid.prod())[:, None], embeddings, 0.0)
        return placed


class _Pooled(nn.Module):
    def __init__(self, pooled: PooledFeatures) -> None:
        super().__init__()
        self.vlm_norm, self.dino_norm = pooled.vlm_norm, pooled.dino_norm

    def forward(
        self,
        vlm_hidden_states: Tensor,
        dino_hidden_states: Tensor,
        *,
        vlm_grid: Tensor,
        dino_grid: Tensor,
        vlm_lengths: Tensor,
    ) -> tuple[Tensor, Tensor]:
        keep = _keep(vlm_hidden_states, vlm_lengths)
        total = torch.where(keep[:, :, None], vlm_hidden_states, 0.0).sum(1, dtype=torch.float32)
        mean = (total / vlm_lengths.clamp(min=1)[:, None]).to(vlm_hidden_states.dtype)
        # The grids have no part in a mean; every target still takes the same inputs.
        unused = ((vlm_grid + dino_grid).sum() * 0).to(mean.dtype)
        return self.vlm_norm(mean) + unused, self.dino_norm(dino_hidden_states.mean(1))


class _Streams(nn.Module):
    def __init__(self, streams: GridStreams) -> None:
        super().__init__()
        self.vlm, self.dino, self.output_grid = streams.vlm, streams.dino, streams.output_grid

    def forward(
        self,
        vlm_hidden_states: Tensor,
        dino_hidden_states: Tensor,
        *,
        vlm_grid: Tensor,
        dino_grid: Tensor,
        vlm_lengths: Tensor,
    ) -> Tensor:
        keep = _keep(vlm_hidden_states, vlm_lengths)
        everything = torch.ones_like(dino_hidden_states[:, :, 0], dtype=torch.bool)
        vlm = _resample(self.vlm(vlm_hidden_states), vlm_grid, self.output_grid, keep)
        return vlm + _resample(self.dino(dino_hidden_states), dino_grid, self.output_grid, everything)


def _keep(hidden_states: Tensor, lengths: Tensor) -> Tensor:
    steps = torch.arange(hidden_states.shape[1], device=hidden_states.device)
    return steps < lengths[:, None]


def _resample(hidden_states: Tensor, grid: Tensor, output_grid: Grid, keep: Tensor) -> Tensor:
    """`foresight.adapters.resample` as one product, whose matrix follows from the grid's values."""
    steps = torch.arange(hidden_states.shape[1], device=hidden_states.device)
    rows, columns = grid[1].clamp(min=1), grid[2].clamp(min=1)
    places = (steps // (rows * columns), steps // columns % rows, steps % columns)
    time, row, column = (
        _axis_weights(*each) for each in zip(places, grid.unbind(), output_grid, strict=True)
    )
    weights = time[:, None, None] * row[None, :, None] * column[None, None, :]
    weights = torch.where(steps < grid.prod(), weights, 0.0).flatten(0, 2).to(hidden_states.dtype)
    kept = weights @ torch.where(keep[:, :, None], hidden_states, 0.0)
    coverage = weights @ keep[:, :, None].to(hidden_states.dtype)
    resampled = kept / torch.where(coverage > 0, coverage, 1.0)
    return resampled.view(-1, *output_grid, hidden_states.shape[2])


def _axis_weights(places: Tensor, size: Tensor, output: int) -> Tensor:
    """The weights [output, N] of tokens at `places` of one axis of `size`."""
    span = size.clamp(min=1).to(torch.float32)
    scale = span / output
    centres = (torch.arange(output, device=places.device) + 0.5) * scale - 0.5
    centres = centres.clamp(min=0.0).minimum(span - 1)
    distances = (places - centres[:, None]).abs() / scale.clamp(min=1.0)
    weights = (1.0 - distances).clamp(min=0.0)
    # What a row of weights adds up to over the axis itself, on which every token's place stands many times.
    axis = torch.arange(_LONGEST_AXIS, device=places.device)
    over_axis = (1.0 - (axis - centres[:, None]).abs() / scale.clamp(min=1.0)).clamp(min=0.0)
    total = torch.where(axis < span, over_axis, 0.0).sum(1, keepdim=True)
    return weights / total


def _fold_first_self_attention(adapter: Adapter) -> None:
    """Compute once what the first layer's self-attention makes of the learned queries: it sees no input."""
    body = getattr(adapter, "body", None)
    if isinstance(body, AdapterBody):
        hidden_states = first_queries(body)[0].to(body.queries.dtype)
        body.queries = nn.Parameter(hidden_states, requires_grad=False)
        body.layers[0] = _LaterHalf(body.get_submodule("layers.0"))


class _LaterHalf(nn.Module):
    """An adapter's layer without its self-attention."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        assert isinstance(layer, AdapterLayer)
        self.cross_norm, self.cross_attention = layer.cross_norm, layer.cross_attention
        self.ff_norm, self.feed_forward = layer.ff_norm, layer.feed_forward

    def forward(self, hidden_states: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        hidden_states = hidden_states + self.cross_attention(self.cross_norm(hidden_states), context, mask)
        output: Tensor = hidden_states + self.feed_forward(self.ff_norm(hidden_states))
        return output
