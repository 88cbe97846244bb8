"""The Triton kernels as one CUDA graph for each bucket, which reads and writes static buffers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from foresight.runtime.capture import capture_graph, new_pool
from foresight.runtime.replicated import Bucket, Grids, ReplicatedAdapter

__all__ = ["GraphedAdapter"]


class _GraphedBucket(Bucket):
    """The buffers of one bucket, the graph that reads and writes them, and what they hold now."""

    def __init__(self, owner: ReplicatedAdapter, tokens: int, pool: Any) -> None:
        super().__init__(owner, tokens)
        self.lengths = torch.full((owner.batch,), tokens, dtype=torch.int32, device=owner.device)
        self._length: int | None = tokens
        self._replay, self.output = capture_graph(self.forward, owner.device, pool)

    def forward(self) -> Tensor:
        """The same kernels on the same buffers, without the graph."""
        return self._owner.packed.forward(self.vlm.buffer, self.dino.buffer, self.table, self.lengths)

    def translate(
        self, vlm: Tensor, dino: Tensor, grids: Grids, lengths: Tensor | None, stream: int
    ) -> Tensor:
        """Bring the buffers up to date and replay the graph."""
        sources = vlm.data_ptr(), dino.data_ptr()
        if sources != (self.vlm.address, self.dino.address):
            copy = self._owner.device_copy.here()
            self.vlm.load(vlm, sources[0], copy, stream)
            self.dino.load(dino, sources[1], copy, stream)
        self.place(grids)
        if lengths is not None:
            self.lengths.copy_(lengths, non_blocking=True)
            self._length = None
        elif self._length != vlm.shape[1]:
            self.lengths.fill_(vlm.shape[1])
            self._length = vlm.shape[1]
        self._replay()
        return self.output


class GraphedAdapter(ReplicatedAdapter):
    """One CUDA-graph replay a call; see `foresight.runtime.prepared.prepare`."""

    path = "fused Triton kernels, one CUDA graph replay a call"

    def _make_replica(self) -> Sequence[Bucket]:
        # One pool for all of them: a replica runs one bucket at a time.
        pool = new_pool()
        return [_GraphedBucket(self, tokens, pool) for tokens in self.buckets]
