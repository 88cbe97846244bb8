"""The adapter on the project's fused kernels, as a module that ahead-of-time compilation traces."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from foresight.adapters import Adapter, AdapterBody
from foresight.adapters.packing import pack_adapter
from foresight.export.portable import GridPositions

__all__ = ["FusedAdapter"]


class FusedAdapter(nn.Module):
    """Computes what `adapter` does, with products in `dtype` and sums in fp32; the adapter itself stays as it is.

    Takes the tensors of `ENGINE_INPUTS`, features in `dtype`. Raises ValueError for an adapter of another
    architecture than `PACKED_ARCHITECTURES`.
    """

    def __init__(self, adapter: Adapter, dtype: torch.dtype) -> None:
        super().__init__()
        self.packed = pack_adapter(adapter, torch.device("cpu"), dtype)
        body = adapter.get_submodule("body")
        assert isinstance(body, AdapterBody)
        # Copies, because moving a module moves the parameters that it shares.
        self.vlm_positions, self.dino_positions = (
            GridPositions(copy.deepcopy(stream.positions)) for stream in (body.context.vlm, body.context.dino)
        )

    def forward(
        self,
        vlm_hidden_states: Tensor,
        dino_hidden_states: Tensor,
        vlm_grid: Tensor,
        dino_grid: Tensor,
        vlm_lengths: Tensor,
    ) -> Tensor:
        """See `Adapter.forward`; the grids are int64 [3], the lengths int64 [B]."""
        dino = self.packed.dino.bias + self.dino_positions(dino_hidden_states.shape[1], dino_grid)
        vlm = self.packed.vlm.bias + self.vlm_positions(vlm_hidden_states.shape[1], vlm_grid)
        table, lengths = torch.cat([dino, vlm]), vlm_lengths.to(torch.int32)
        output: Tensor = self.packed(vlm_hidden_states, dino_hidden_states, table, lengths)
        return output
