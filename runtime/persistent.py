"""The persistent kernel: a whole adapter in one cooperative launch, which reads a clip where it lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import cast

import torch
from torch import Tensor

from foresight.adapters import Adapter, AdapterConfig
from foresight.adapters.packing import PackedAdapter
from foresight.kernels.persistent import Buffers, Weights
from foresight.kernels.persistent_kernel import SHARED_MEMORY, PersistentKernel, persistent_blocks
from foresight.kernels.persistent_launch import PersistentLaunch
from foresight.kernels.persistent_shape import PersistentShape
from foresight.kernels.wide_shape import WideShape
from foresight.runtime.capture import current_stream
from foresight.runtime.input_buffer import InputBuffer
from foresight.runtime.prepared import PreparedReport, megabytes
from foresight.runtime.replicated import Bucket, Grids, ReplicatedAdapter

__all__ = ["PersistentAdapter", "load_persistent_kernel", "persistent_shape"]

_CAPABILITY = (9, 0)
_ALIGNMENT = 16


def persistent_shape(config: AdapterConfig, dtype: torch.dtype, blocks: int) -> PersistentShape:
    """What the kernel is compiled for, to serve an adapter on a GPU that holds so many blocks.

    Where the weights are too many for the blocks, the kernel through whose blocks they pass.
    """
    shape = PersistentShape(
        hidden_dim=config.hidden_dim,
        num_heads=config.num_heads,
        ff_dim=config.ff_dim,
        output_dim=config.output_dim,
        vlm_dim=config.vlm_dim,
        dino_dim=config.dino_dim,
        num_queries=config.num_queries,
        num_layers=config.num_layers,
        dtype=dtype,
        blocks=blocks,
    )
    return shape if shape.refusal(SHARED_MEMORY) is None else WideShape(**asdict(shape))


def load_persistent_kernel(
    packed: PackedAdapter, device: torch.device, dtype: torch.dtype, batch: int
) -> PersistentKernel:
    """Compile and load the kernel for an adapter on a GPU; takes some seconds.

    Raises ValueError, one line, that says why it cannot serve: the batch, the GPU, the adapter's sizes, or no compiler.
    """
    if batch != 1:
        raise ValueError(f"batch {batch}: the persistent kernel serves one clip at a time")
    capability = torch.cuda.get_device_capability(device)
    if capability != _CAPABILITY:
        given = ".".join(map(str, capability))
        raise ValueError(f"compute capability {given}: the persistent kernel is made for 9.0")
    try:
        shape = persistent_shape(packed.config, dtype, persistent_blocks(device))
        return PersistentKernel(shape, cast(Weights, packed), device)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the persistent kernel does not load: {reason}") from error


class _PersistentBucket(Bucket):
    """The buffers of one bucket and a launch that works in them."""

    def __init__(self, owner: PersistentAdapter, tokens: int) -> None:
        super().__init__(owner, tokens)
        # Every length lies ready, so that a call names one instead of writing it.
        self._all_lengths = owner.all_lengths
        self._lengths, self._length = self._all_lengths[tokens], tokens
        self._given_lengths = torch.zeros(1, dtype=torch.int32, device=owner.device)
        buffers = Buffers(owner.kernel.shape, tokens, owner.dino_tokens, owner.device)
        self._launch = PersistentLaunch(
            owner.kernel, self.vlm.buffer, self.dino.buffer, self.table, self._given_lengths, buffers
        )
        self._written: Tensor = buffers.output[None]
        self._grid = owner.config.output_grid
        self.output = self._written if self._grid is None else self._as_grid().contiguous()
        # A device that cannot hold all blocks at once says so now.
        self._launch(self.vlm.buffer, self.dino.buffer, self._lengths, current_stream(owner.device))

    def translate(
        self, vlm: Tensor, dino: Tensor, grids: Grids, lengths: Tensor | None, stream: int
    ) -> Tensor:
        """Launch on the features where they lie, or on a copy of what the kernel cannot read there."""
        tokens = vlm.shape[1]
        if lengths is not None:
            true = self._given_lengths.copy_(lengths, non_blocking=True)
        else:
            if tokens != self._length:
                self._lengths, self._length = self._all_lengths[tokens], tokens
            true = self._lengths
        # The kernel may look at every row of the bucket, and 16 bytes at a time.
        if tokens != self.tokens or vlm.data_ptr() % _ALIGNMENT:
            vlm = self._copied(vlm, self.vlm, stream)
        if dino.data_ptr() % _ALIGNMENT:
            dino = self._copied(dino, self.dino, stream)
        self.place(grids)
        self._launch(vlm, dino, true, stream)
        if self._grid is not None:
            self.output.copy_(self._as_grid())
        return self.output

    def _as_grid(self) -> Tensor:
        """What a launch wrote, in the order of a grid's output."""
        assert self._grid is not None
        return self._written.transpose(1, 2).view(1, -1, *self._grid)

    def _copied(self, features: Tensor, to: InputBuffer, stream: int) -> Tensor:
        to.load(features, features.data_ptr(), self._owner.device_copy.here(), stream)
        return to.buffer


class PersistentAdapter(ReplicatedAdapter):
    """One cooperative launch a call; see `foresight.runtime.prepared.prepare`.

    A launch leaves its replica's buffers ready for the next one, so that launches of one replica must never run at the
    same time: each stream that calls has a replica, and a stream runs one launch after the other. A caller's CUDA graph
    that captured a call keeps the replica of the stream that captured: replay it on one stream at a time, leave the
    features where they were, and make no other calls on that stream.
    """

    path = "persistent kernel, one cooperative launch a call"

    def __init__(
        self,
        adapter: Adapter,
        packed: PackedAdapter,
        kernel: PersistentKernel,
        device: torch.device,
        dtype: torch.dtype,
        buckets: tuple[int, ...],
        *,
        dino_tokens: int,
        replicas: int,
    ) -> None:
        self.kernel = kernel
        # [n] begins with n, at an address that the kernel takes.
        lengths = torch.arange(buckets[-1] + 1, dtype=torch.int32, device=device)
        self.all_lengths = lengths[:, None].repeat(1, _ALIGNMENT // lengths.itemsize)
        super().__init__(
            adapter, packed, device, dtype, buckets, dino_tokens=dino_tokens, batch=1, replicas=replicas
        )

    def report(self) -> PreparedReport:
        """What this adapter uses, with the weights as the kernel has arranged them."""
        report = super().report()
        more = megabytes(self.kernel.parameters.tensors())
        return replace(report, weights_mb=report.weights_mb + more)

    def _make_replica(self) -> Sequence[Bucket]:
        return [_PersistentBucket(self, tokens) for tokens in self.buckets]
