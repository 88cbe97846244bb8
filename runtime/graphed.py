"""The CUDA form of a prepared adapter: static buffers and one graph for each bucket, a replica a stream."""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import Any

import torch
from torch import Tensor

from foresight.adapters import Adapter, AdapterBody, Grid
from foresight.adapters.packing import PackedAdapter, positions_table
from foresight.runtime.capture import capture_graph, current_stream, new_pool, reserved_bytes
from foresight.runtime.device_copy import Copy, DeviceCopy
from foresight.runtime.prepared import PreparedAdapter, PreparedReport

__all__ = ["GraphedAdapter"]

Grids = tuple[Grid | None, Grid | None]


class _Input:
    """The buffer of one encoder's features, which the graph reads."""

    def __init__(self, owner: GraphedAdapter, tokens: int, dim: int) -> None:
        self.buffer = torch.zeros(owner.batch, tokens, dim, device=owner.device, dtype=owner.dtype)
        self.address = self.buffer.data_ptr()
        # Features of fewer bytes are not one range here: several clips with rows left over, or no tokens.
        self._least = self.buffer.nbytes if owner.batch > 1 else 1

    def load(self, features: Tensor, source: int, copy: Copy | None, stream: int) -> None:
        """Copy `features`, which lie at `source`, to the first rows of the buffer."""
        if source == self.address:
            return
        # The stream's order keeps features that were made on it until they are copied, even if freed at once;
        # one made on another stream is its caller's to keep, as with any work. PyTorch refuses what overlaps.
        if copy is not None and self._least <= (size := features.nbytes) <= abs(source - self.address):
            copy(self.address, source, size, stream)
        else:
            self.buffer[:, : features.shape[1]].copy_(features, non_blocking=True)


class _Bucket:
    """The buffers of one bucket, the graph that reads and writes them, and what they hold now."""

    def __init__(self, owner: GraphedAdapter, tokens: int, pool: Any) -> None:
        self._owner, self.tokens = owner, tokens
        self.vlm = _Input(owner, tokens, owner.config.vlm_dim)
        self.dino = _Input(owner, owner.dino_tokens, owner.config.dino_dim)
        self.lengths = torch.full((owner.batch,), tokens, dtype=torch.int32, device=owner.device)
        self.table = owner.make_table(tokens, (None, None))
        # What the buffers hold, so that nothing is written twice: a stream's clips share grid and length.
        self._grids: Grids = (None, None)
        self._length: int | None = tokens
        self._replay, self.output = capture_graph(self.forward, owner.device, pool)

    def forward(self) -> Tensor:
        """The same kernels on the same buffers, without the graph."""
        return self._owner.packed.forward(self.vlm.buffer, self.dino.buffer, self.table, self.lengths)

    def replay(self, vlm: Tensor, dino: Tensor, grids: Grids, lengths: Tensor | None, stream: int) -> Tensor:
        sources = vlm.data_ptr(), dino.data_ptr()
        if sources != (self.vlm.address, self.dino.address):
            copy = self._owner.device_copy.here()
            self.vlm.load(vlm, sources[0], copy, stream)
            self.dino.load(dino, sources[1], copy, stream)
        if grids != self._grids:
            self.table.copy_(self._owner.make_table(self.tokens, grids))
            self._grids = grids
        if lengths is not None:
            self.lengths.copy_(lengths, non_blocking=True)
            self._length = None
        elif self._length != vlm.shape[1]:
            self.lengths.fill_(vlm.shape[1])
            self._length = vlm.shape[1]
        self._replay()
        return self.output


class GraphedAdapter(PreparedAdapter):
    """One CUDA-graph replay a call; see `foresight.runtime.prepared.prepare`."""

    def __init__(
        self,
        adapter: Adapter,
        packed: PackedAdapter,
        device: torch.device,
        dtype: torch.dtype,
        buckets: tuple[int, ...],
        *,
        dino_tokens: int,
        batch: int,
        replicas: int,
    ) -> None:
        body = adapter.get_submodule("body")
        assert isinstance(body, AdapterBody)
        self.config, self.packed, self.device, self.dtype = adapter.config, packed, device, dtype
        self.buckets, self.dino_tokens, self.batch, self._body = buckets, dino_tokens, batch, body
        before = reserved_bytes(device)
        # Buffers that are written into inside and outside of inference mode must not belong to it.
        with torch.inference_mode(False), torch.no_grad():
            self._replicas = [self._make_replica() for _ in range(replicas)]
        self._reserved = reserved_bytes(device) - before
        self.device_copy = DeviceCopy(device)
        self._bound: dict[int, list[_Bucket]] = {}
        # What a stream's last call was like, since the next is mostly like it and need not be checked again.
        self._accepted: dict[int, tuple[object, ...]] = {}

    def _make_replica(self) -> list[_Bucket]:
        # One pool for all of them: a replica runs one bucket at a time.
        pool = new_pool()
        return [_Bucket(self, tokens, pool) for tokens in self.buckets]

    def make_table(self, tokens: int, grids: Grids) -> Tensor:
        """The additive table of a bucket, for `grids` of DINO and the VLM."""
        return positions_table(self._body, self.packed, (self.dino_tokens, tokens), grids)

    def __call__(
        self,
        vlm_hidden_states: Tensor,
        dino_hidden_states: Tensor,
        *,
        vlm_grid: Grid | None = None,
        dino_grid: Grid | None = None,
        vlm_lengths: Tensor | None = None,
    ) -> Tensor:
        """Translate; the result is a buffer that the next call on this stream overwrites.

        Features must be contiguous, of this adapter's device and dtype. Raises ValueError as promised.
        """
        vlm, dino, stream = vlm_hidden_states, dino_hidden_states, current_stream(self.device)
        call = (
            *(vlm.shape, vlm.dtype, vlm.device, vlm.is_contiguous(), vlm_grid),
            *(dino.shape, dino.dtype, dino.device, dino.is_contiguous(), dino_grid),
            vlm_lengths is None,
        )
        if call != self._accepted.get(stream):
            self._check_call(vlm, dino, vlm_grid, dino_grid, padded=vlm_lengths is not None)
        tokens = vlm.shape[1]
        if vlm_lengths is not None:
            vlm_lengths = self._true_lengths(vlm_lengths, tokens, vlm_grid)
        bucket = self._replica_of(stream)[bisect_left(self.buckets, tokens)]
        self._accepted[stream] = call
        return bucket.replay(vlm, dino, (dino_grid, vlm_grid), vlm_lengths, stream)

    def inputs(self, tokens: int) -> tuple[Tensor, Tensor]:
        """The buffers [B, bucket, vlm_dim] and [B, M, dino_dim] that calls with `tokens` VLM tokens read.

        A producer that writes there and calls with the VLM's first `tokens` rows saves the copies.
        """
        bucket = self.replica()[bisect_left(self.buckets, tokens)]
        return bucket.vlm.buffer, bucket.dino.buffer

    def replica(self) -> list[_Bucket]:
        """The buckets that belong to the current stream, which keeps them from its first call on."""
        return self._replica_of(current_stream(self.device))

    def _replica_of(self, stream: int) -> list[_Bucket]:
        replica = self._bound.get(stream)
        if replica is None:
            if len(self._bound) == len(self._replicas):
                raise ValueError(
                    f"{len(self._replicas)} replicas: each stream that calls needs one of its own"
                )
            replica = self._bound[stream] = self._replicas[len(self._bound)]
        return replica

    def report(self) -> PreparedReport:
        """What this adapter uses, in memory too."""
        weights = sum(x.numel() * x.element_size() for x in self.packed.tensors())
        return PreparedReport(
            path="fused Triton kernels, one CUDA graph replay a call",
            device=str(self.device),
            dtype=str(self.dtype).removeprefix("torch."),
            batch=self.batch,
            buckets=self.buckets,
            replicas=len(self._replicas),
            weights_mb=weights / 1e6,
            buffers_mb=self._reserved / 1e6,
        )

    def _check_call(
        self, vlm: Tensor, dino: Tensor, vlm_grid: Grid | None, dino_grid: Grid | None, *, padded: bool
    ) -> None:
        tokens = self._check("vlm", vlm, self.config.vlm_dim)
        count = self._check("dino", dino, self.config.dino_dim)
        if count != self.dino_tokens:
            raise ValueError(f"dino_hidden_states of {count} tokens: prepared for {self.dino_tokens}")
        if tokens > self.buckets[-1]:
            raise ValueError(
                f"vlm_hidden_states of {tokens} tokens: the largest bucket is {self.buckets[-1]}"
            )
        self._check_grids(tokens, vlm_grid, dino_grid, padded=padded)

    def _check(self, stream: str, hidden_states: Tensor, dim: int) -> int:
        shape = hidden_states.shape
        if len(shape) != 3 or shape[0] != self.batch or shape[2] != dim:
            raise ValueError(
                f"{stream}_hidden_states of shape {tuple(shape)}: must be [{self.batch}, tokens, {dim}]"
            )
        if hidden_states.device != self.device or hidden_states.dtype != self.dtype:
            given = f"{hidden_states.dtype} on {hidden_states.device}"
            raise ValueError(f"{stream}_hidden_states of {given}: must be {self.dtype} on {self.device}")
        if not hidden_states.is_contiguous():
            raise ValueError(f"{stream}_hidden_states: must be contiguous, call .contiguous() first")
        return shape[1]

    def _check_grids(
        self, tokens: int, vlm_grid: Grid | None, dino_grid: Grid | None, *, padded: bool
    ) -> None:
        context = self._body.context
        for stream, positions, grid, count in (
            ("vlm", context.vlm.positions, vlm_grid, tokens),
            ("dino", context.dino.positions, dino_grid, self.dino_tokens),
        ):
            if grid is None:
                continue
            expected = math.prod(grid)
            if count != expected and not (padded and stream == "vlm" and count > expected):
                raise ValueError(
                    f"{stream}_grid {grid}: has {expected} tokens, {stream}_hidden_states has {count}"
                )
            if any(size > most for size, most in zip(grid, positions.max_grid, strict=True)):
                raise ValueError(
                    f"{stream}_grid {grid}: every size must be at most that of {positions.max_grid}"
                )

    def _true_lengths(self, lengths: Tensor, tokens: int, grid: Grid | None) -> Tensor:
        if lengths.shape != (self.batch,) or lengths.is_floating_point() or lengths.dtype == torch.bool:
            given = f"{lengths.dtype} of shape {tuple(lengths.shape)}"
            raise ValueError(f"vlm_lengths {given}: must be whole numbers of shape ({self.batch},)")
        most = tokens if grid is None else min(tokens, math.prod(grid))
        if lengths.device.type == "cpu":
            wrong = [length for length in lengths.tolist() if not 0 <= length <= most]
            if wrong:
                raise ValueError(
                    f"vlm_lengths {wrong[0]}: must be from 0 to {most}, the tokens that are there"
                )
        return lengths.clamp(0, most)
