"""Stand-ins for CUDA that compute the reference on the CPU, for what surrounds a graph or the persistent kernel."""

from __future__ import annotations

import copy
import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from foresight.adapters import Adapter, AdapterConfig, build_adapter
from foresight.adapters.packing import PackedAdapter, pack_adapter
from foresight.kernels.persistent import Buffers
from foresight.kernels.persistent_shape import PersistentShape
from foresight.runtime import graphed, persistent, replicated
from foresight.runtime.graphed import GraphedAdapter
from foresight.runtime.persistent import PersistentAdapter, persistent_shape
from foresight.runtime.replicated import ReplicatedAdapter

__all__ = ["BUCKETS", "FakeCuda", "Form", "assert_same", "features", "make", "small_adapter"]

Form = Literal["graph", "persistent"]
CPU = torch.device("cpu")
BUCKETS = (16, 48)


@dataclass(frozen=True, slots=True)
class FakeKernel:
    """What a launch computes, and for which sizes."""

    shape: PersistentShape
    packed: PackedAdapter

    @property
    def parameters(self) -> SimpleNamespace:
        """What it keeps besides the packed weights: a copy of them."""
        return SimpleNamespace(tensors=self.packed.tensors)


class FakeCuda:
    """Runs a captured function at every replay, says which stream is current and keeps what was copied or launched."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stream, self.runs, self.pools = 0, 0, 0
        self.current = True
        self.copies: list[tuple[int, int, int, int]] = []
        self.launches: list[tuple[int, int, int]] = []
        monkeypatch.setattr(graphed, "capture_graph", self.capture_graph)
        monkeypatch.setattr(graphed, "new_pool", self.new_pool)
        monkeypatch.setattr(persistent, "PersistentLaunch", self.make_launch)
        for module in (persistent, replicated):
            monkeypatch.setattr(module, "current_stream", lambda _: self.stream)
        monkeypatch.setattr(replicated, "reserved_bytes", lambda _: 0)
        monkeypatch.setattr(replicated, "DeviceCopy", lambda _: self)

    def here(self) -> Callable[[int, int, int, int], None] | None:
        return self.copy if self.current else None

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        self.copies.append((target, source, size, stream))
        ctypes.memmove(target, source, size)

    def capture_graph(
        self,
        forward: Callable[[], Tensor],
        device: torch.device,  # noqa: ARG002
        pool: Any,  # noqa: ARG002
    ) -> tuple[Callable[[], None], Tensor]:
        output = forward()

        def replay() -> None:
            self.runs += 1
            output.copy_(forward())

        return replay, output

    def make_launch(
        self, kernel: FakeKernel, vlm: Tensor, dino: Tensor, table: Tensor, lengths: Tensor, buffers: Buffers
    ) -> Callable[[Tensor, Tensor, Tensor, int], None]:
        shapes = vlm.shape, dino.shape
        assert (vlm.shape[1], dino.shape[1]) == (buffers.vlm_tokens, buffers.dino_tokens)
        assert lengths.dtype == torch.int32

        def launch(vlm: Tensor, dino: Tensor, lengths: Tensor, stream: int) -> None:
            self.runs += 1
            self.launches.append((vlm.data_ptr(), dino.data_ptr(), stream))
            assert (vlm.shape, dino.shape) == shapes
            assert all(x.data_ptr() % 16 == 0 for x in (vlm, dino, table, lengths))
            output = kernel.packed.forward(vlm, dino, table, lengths[:1])
            buffers.output.copy_(output.flatten(2).mT[0] if output.dim() == 5 else output[0])

        return launch

    def new_pool(self) -> int:
        self.pools += 1
        return self.pools


def small_adapter(architecture: str = "query") -> Adapter:
    """7 queries of width 20 from tokens of widths 24 (VLM) and 16 (DINO), or a grid [20, 1, 2, 3] of them."""
    torch.manual_seed(0)
    grid = None if architecture == "query" else (1, 2, 3)
    return build_adapter(
        AdapterConfig(
            architecture=architecture, vlm_dim=24, dino_dim=16, hidden_dim=64, num_layers=2, num_heads=2, ff_dim=80,
            num_queries=7 if grid is None else 6, output_dim=20, output_grid=grid,
        )
    ).eval()  # fmt: skip


def make(adapter: Adapter, form: Form, *, batch: int = 1, replicas: int = 1) -> ReplicatedAdapter:
    """The prepared form of an adapter for 6 tokens of DINO, on the stand-in."""
    packed, dtype = pack_adapter(adapter, CPU, torch.float32), torch.float32
    adapter = copy.deepcopy(adapter)
    if form == "graph":
        return GraphedAdapter(
            adapter, packed, CPU, dtype, BUCKETS, dino_tokens=6, batch=batch, replicas=replicas
        )
    kernel: Any = FakeKernel(persistent_shape(adapter.config, dtype, blocks=8), packed)
    return PersistentAdapter(adapter, packed, kernel, CPU, dtype, BUCKETS, dino_tokens=6, replicas=replicas)


def features(tokens: int, batch: int = 1) -> tuple[Tensor, Tensor]:
    """Random features of both encoders."""
    return torch.randn(batch, tokens, 24), torch.randn(batch, 6, 16)


@torch.no_grad()
def assert_same(
    adapter: Adapter, prepared: ReplicatedAdapter, pair: tuple[Tensor, Tensor], **options: Any
) -> None:
    """The prepared adapter gives what the adapter gives."""
    expected = adapter(*pair, **options)
    torch.testing.assert_close(prepared(*pair, **options), expected, rtol=0, atol=1e-5)
