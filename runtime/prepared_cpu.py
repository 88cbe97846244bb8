"""The CPU form of a prepared adapter: the packed weights through oneDNN, or else PyTorch's own products."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from foresight.adapters import Adapter, AdapterBody, Grid
from foresight.adapters.packing import PackedAdapter, positions_table
from foresight.kernels import onednn, reference
from foresight.runtime.prepared import PreparedAdapter, PreparedReport, megabytes

__all__ = ["CpuPreparedAdapter"]


class CpuPreparedAdapter(PreparedAdapter):
    """See `foresight.runtime.prepared.prepare`."""

    def __init__(self, adapter: Adapter, packed: PackedAdapter, dtype: torch.dtype) -> None:
        body = adapter.get_submodule("body")
        assert isinstance(body, AdapterBody)
        self.config, self._body = adapter.config, body
        self._kernels: ModuleType = onednn if onednn.available() else reference
        if self._kernels is onednn:
            packed.change_weights(onednn.reorder)
        self.packed = packed
        self.device, self.dtype = torch.device("cpu"), dtype
        self._table: tuple[object, Tensor] | None = None

    @torch.no_grad()
    def __call__(
        self,
        vlm_hidden_states: Tensor,
        dino_hidden_states: Tensor,
        *,
        vlm_grid: Grid | None = None,
        dino_grid: Grid | None = None,
        vlm_lengths: Tensor | None = None,
    ) -> Tensor:
        """Translate as `Adapter.forward` does."""
        from foresight.adapters.features import check_features, check_grids
        from foresight.adapters.lengths import true_tokens

        streams = {"vlm": vlm_hidden_states, "dino": dino_hidden_states}
        for name, x in streams.items():
            if x.device != self.device or x.dtype != self.dtype:
                given = f"{x.dtype} on {x.device}"
                raise ValueError(f"{name}_hidden_states of {given}: must be {self.dtype} on {self.device}")
            if not x.is_contiguous():
                raise ValueError(f"{name}_hidden_states: must be contiguous, call .contiguous() first")
        check_features(self.config, vlm_hidden_states, dino_hidden_states)
        check_grids(vlm_hidden_states, dino_hidden_states, vlm_grid, dino_grid, vlm_lengths)
        batch, tokens = vlm_hidden_states.shape[:2]
        if vlm_lengths is None:
            lengths = torch.full((batch,), tokens, dtype=torch.int32)
        else:
            lengths = true_tokens(vlm_lengths, vlm_hidden_states, grid=vlm_grid).sum(1, dtype=torch.int32)
        key = (dino_hidden_states.shape[1], tokens), (dino_grid, vlm_grid)
        if self._table is None or self._table[0] != key:
            self._table = key, positions_table(self._body, self.packed, *key)
        return self.packed.forward(
            vlm_hidden_states, dino_hidden_states, self._table[1], lengths, self._kernels
        )

    def report(self) -> PreparedReport:
        """What this adapter uses, in memory too."""
        return PreparedReport(
            path="packed weights, oneDNN" if self._kernels is onednn else "packed weights, PyTorch",
            device="cpu",
            dtype=str(self.dtype).removeprefix("torch."),
            batch=0,
            buckets=(),
            replicas=1,
            weights_mb=megabytes(self.packed.tensors()),
            buffers_mb=0.0,
        )
