"""What the CUDA forms of a prepared adapter share: buckets, a replica a stream, and the checks of a call."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Sequence

import torch
from torch import Tensor

from foresight.adapters import Adapter, AdapterBody, Grid
from foresight.adapters.packing import PackedAdapter, positions_table
from foresight.runtime.capture import current_stream, reserved_bytes
from foresight.runtime.device_copy import DeviceCopy
from foresight.runtime.input_buffer import InputBuffer
from foresight.runtime.prepared import PreparedAdapter, PreparedReport, megabytes

__all__ = ["Bucket", "Grids", "ReplicatedAdapter"]

Grids = tuple[Grid | None, Grid | None]
"""Those of DINO and the VLM."""


class Bucket(ABC):
    """The buffers of one replica for calls of up to `tokens` VLM tokens."""

    def __init__(self, owner: ReplicatedAdapter, tokens: int) -> None:
        self._owner, self.tokens = owner, tokens
        config, device, dtype = owner.config, owner.device, owner.dtype
        self.vlm = InputBuffer(owner.batch, tokens, config.vlm_dim, device=device, dtype=dtype)
        self.dino = InputBuffer(owner.batch, owner.dino_tokens, config.dino_dim, device=device, dtype=dtype)
        self.table = owner.make_table(tokens, (None, None))
        # What the table holds, so that it is not written twice: a stream's clips share their grids.
        self._grids: Grids = (None, None)

    @abstractmethod
    def translate(
        self, vlm: Tensor, dino: Tensor, grids: Grids, lengths: Tensor | None, stream: int
    ) -> Tensor:
        """The result for features that were checked, in a buffer; `lengths` [B] unless all tokens are true."""

    def place(self, grids: Grids) -> None:
        """Make the table that of `grids`."""
        if grids != self._grids:
            self.table.copy_(self._owner.make_table(self.tokens, grids))
            self._grids = grids


class ReplicatedAdapter(PreparedAdapter):
    """A prepared adapter with buffers for every bucket and replica; see `foresight.runtime.prepared.prepare`.

    `path` is what its report calls it.
    """

    path: str

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
        self._bound: dict[int, Sequence[Bucket]] = {}
        # A stream's last call and who served it: the next is mostly like it and need not be checked again.
        self._accepted: dict[int, tuple[tuple[object, ...], Bucket]] = {}

    @abstractmethod
    def _make_replica(self) -> Sequence[Bucket]:
        """A bucket for each of `buckets`, of which one runs at a time."""

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
        accepted, bucket = self._accepted.get(stream, (None, None))
        if call != accepted:
            self._check_call(vlm, dino, vlm_grid, dino_grid, padded=vlm_lengths is not None)
            bucket = None
        if vlm_lengths is not None:
            vlm_lengths = self._true_lengths(vlm_lengths, vlm.shape[1], vlm_grid)
        # Last, because a call that is refused must not take a replica.
        if bucket is None:
            bucket = self._replica_of(stream)[bisect_left(self.buckets, vlm.shape[1])]
            self._accepted[stream] = call, bucket
        return bucket.translate(vlm, dino, (dino_grid, vlm_grid), vlm_lengths, stream)

    def inputs(self, tokens: int) -> tuple[Tensor, Tensor]:
        """The buffers [B, bucket, vlm_dim] and [B, M, dino_dim] that calls with `tokens` VLM tokens read.

        A producer that writes there and calls with the VLM's first `tokens` rows saves the copies.
        """
        bucket = self.replica()[bisect_left(self.buckets, tokens)]
        return bucket.vlm.buffer, bucket.dino.buffer

    def replica(self) -> Sequence[Bucket]:
        """The buckets that belong to the current stream, which keeps them from its first call on."""
        return self._replica_of(current_stream(self.device))

    def _replica_of(self, stream: int) -> Sequence[Bucket]:
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
        return PreparedReport(
            path=self.path,
            device=str(self.device),
            dtype=str(self.dtype).removeprefix("torch."),
            batch=self.batch,
            buckets=self.buckets,
            replicas=len(self._replicas),
            weights_mb=megabytes(self.packed.tensors()),
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
