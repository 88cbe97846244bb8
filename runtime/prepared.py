"""An adapter made ready to serve: weights packed once, one launch or one graph replay a call on CUDA.

`prepare` is what a pipeline calls; a prepared adapter is called like the adapter that it was made from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from foresight.adapters import Adapter, AdapterConfig, Grid
from foresight.adapters.packing import pack_adapter

__all__ = ["MAX_CONTEXT", "KernelPath", "PreparedAdapter", "PreparedReport", "megabytes", "prepare"]

MAX_CONTEXT, MAX_BATCH = 4096, 8
KernelPath = Literal["auto", "persistent", "graph"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedReport:
    """What a prepared adapter uses: the path, numbers of VLM tokens that it serves, and memory in MB (10^6).

    `buffers_mb` is by how much torch's reserved memory grew for inputs, outputs and what the kernels need in between,
    for all buckets and replicas; what fitted into memory that it already held is not in it.
    """

    path: str
    device: str
    dtype: str
    batch: int
    buckets: tuple[int, ...]
    replicas: int
    weights_mb: float
    buffers_mb: float


def megabytes(tensors: Iterable[Tensor]) -> float:
    """What tensors take, in MB (10^6)."""
    return sum(x.nbytes for x in tensors) / 1e6


class PreparedAdapter(ABC):
    """An adapter with its weights packed for one device; called like the adapter itself."""

    config: AdapterConfig
    device: torch.device
    dtype: torch.dtype

    @abstractmethod
    def __call__(
        self,
        vlm_hidden_states: Tensor,
        dino_hidden_states: Tensor,
        *,
        vlm_grid: Grid | None = None,
        dino_grid: Grid | None = None,
        vlm_lengths: Tensor | None = None,
    ) -> Tensor:
        """Translate as `Adapter.forward` does; on CUDA the result is overwritten by a later call.

        Raises ValueError, one line, for features of another device, type, layout, size or number.
        """

    @abstractmethod
    def report(self) -> PreparedReport:
        """What this adapter uses."""


def prepare(
    adapter: Adapter,
    device: str | torch.device,
    dtype: torch.dtype,
    buckets: Sequence[int] = (64, 384, 1536),
    *,
    dino_tokens: int = 256,
    batch: int = 1,
    replicas: int = 1,
    path: KernelPath = "auto",
) -> PreparedAdapter:
    """Pack `adapter` for serving on `device` with products in `dtype`, fp32 sums inside.

    On CUDA (bf16 or fp16) each of `buckets`, numbers of VLM tokens, gets buffers of its own for clips of `batch`
    rows with `dino_tokens` tokens of DINO; a call takes the smallest bucket that holds its tokens. Every stream
    that calls needs one of the `replicas`, which share the weights, and belongs to one thread at a time. `path`
    names what runs there: "persistent", one cooperative launch, for one clip at a time on compute capability 9.0;
    "graph", Triton kernels in a CUDA graph for each bucket; "auto", the first of the two that can serve. The CPU
    (fp32, or bf16, which is quicker where the processor has it) computes what it is given, whatever the buckets.
    Raises ValueError for an architecture without a packed form, for a dtype, bucket, batch or number of
    replicas that is not served, and for a path that cannot serve.
    """
    place = torch.device(device)
    if path not in get_args(KernelPath):
        raise ValueError(f"path {path!r}: must be 'auto', 'persistent' or 'graph'")
    if place.type == "cpu":
        from foresight.runtime.prepared_cpu import CpuPreparedAdapter

        if dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"dtype {dtype}: must be torch.float32 or torch.bfloat16 on the CPU")
        if path != "auto":
            raise ValueError(f"path {path!r}: must be 'auto' on the CPU")
        return CpuPreparedAdapter(adapter, pack_adapter(adapter, place, dtype), dtype)
    if place.type != "cuda":
        raise ValueError(f"device {place}: must be a CUDA device or the CPU")
    if dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"dtype {dtype}: must be torch.bfloat16 or torch.float16 on CUDA")
    _check_sizes(buckets, dino_tokens, batch, replicas)
    from foresight.runtime.graphed import GraphedAdapter
    from foresight.runtime.persistent import PersistentAdapter, load_persistent_kernel

    place = torch.device("cuda", torch.cuda.current_device() if place.index is None else place.index)
    packed, sizes = pack_adapter(adapter, place, dtype), tuple(sorted(set(buckets)))
    if path != "graph":
        try:
            kernel = load_persistent_kernel(packed, place, dtype, batch)
            persistent = PersistentAdapter(
                adapter, packed, kernel, place, dtype, sizes, dino_tokens=dino_tokens, replicas=replicas
            )
        # A device that cannot hold all blocks at once says so at the first launch.
        except (ValueError, RuntimeError) as refusal:
            if path == "persistent":
                raise ValueError(f"path 'persistent': {' '.join(str(refusal).split())}") from refusal
        else:
            packed.give_up_weights()
            return persistent
    return GraphedAdapter(
        adapter, packed, place, dtype, sizes, dino_tokens=dino_tokens, batch=batch, replicas=replicas
    )


def _check_sizes(buckets: Sequence[int], dino_tokens: int, batch: int, replicas: int) -> None:
    if not buckets or min(buckets) < 1:
        raise ValueError(
            f"buckets {tuple(buckets)}: must be one or more numbers of VLM tokens, each at least 1"
        )
    if dino_tokens < 1 or dino_tokens + max(buckets) > MAX_CONTEXT:
        total = dino_tokens + max(buckets)
        raise ValueError(f"context of {total} tokens: DINO's (at least 1) and the VLM's, up to {MAX_CONTEXT}")
    if not 1 <= batch <= MAX_BATCH:
        raise ValueError(f"batch {batch}: must be from 1 to {MAX_BATCH}")
    if replicas < 1:
        raise ValueError(f"replicas {replicas}: must be at least 1, one for each stream that calls")
