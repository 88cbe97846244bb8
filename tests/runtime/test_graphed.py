"""What surrounds the graph: buckets, buffers and streams, with a stand-in for CUDA that replays on the CPU."""

from __future__ import annotations

import copy
import ctypes
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from foresight.adapters import Adapter, AdapterConfig, build_adapter
from foresight.adapters.packing import pack_adapter
from foresight.runtime import graphed
from foresight.runtime.graphed import GraphedAdapter

CPU = torch.device("cpu")
BUCKETS = (16, 48)


class FakeCuda:
    """Runs a captured function at every replay, says which stream is current and keeps what was copied."""

    def __init__(self) -> None:
        self.stream, self.replays, self.pools = 0, 0, 0
        self.current = True
        self.copies: list[tuple[int, int, int, int]] = []

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
            self.replays += 1
            output.copy_(forward())

        return replay, output

    def new_pool(self) -> int:
        self.pools += 1
        return self.pools


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(graphed, "capture_graph", fake.capture_graph)
    monkeypatch.setattr(graphed, "new_pool", fake.new_pool)
    monkeypatch.setattr(graphed, "current_stream", lambda _: fake.stream)
    monkeypatch.setattr(graphed, "reserved_bytes", lambda _: 0)
    monkeypatch.setattr(graphed, "DeviceCopy", lambda _: fake)
    return fake


@pytest.fixture
def adapter() -> Adapter:
    torch.manual_seed(0)
    return build_adapter(
        AdapterConfig(
            architecture="query", vlm_dim=24, dino_dim=16, hidden_dim=64, num_layers=2, num_heads=2, ff_dim=80,
            num_queries=7, output_dim=20,
        )
    ).eval()  # fmt: skip


def make(adapter: Adapter, *, batch: int = 1, replicas: int = 1) -> GraphedAdapter:
    packed = pack_adapter(adapter, CPU, torch.float32)
    return GraphedAdapter(
        copy.deepcopy(adapter),
        packed,
        CPU,
        torch.float32,
        BUCKETS,
        dino_tokens=6,
        batch=batch,
        replicas=replicas,
    )


def features(tokens: int, batch: int = 1) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, tokens, 24), torch.randn(batch, 6, 16)


@torch.no_grad()
def assert_same(
    adapter: Adapter, prepared: GraphedAdapter, pair: tuple[Tensor, Tensor], **options: Any
) -> None:
    expected = adapter(*pair, **options)
    torch.testing.assert_close(prepared(*pair, **options), expected, rtol=0, atol=1e-5)


def test_every_length_up_to_the_largest_bucket(cuda: FakeCuda, adapter: Adapter) -> None:
    prepared = make(adapter)
    # Down as well as up: what a longer clip left in a buffer must not count.
    for tokens in (48, 47, 17, 16, 15, 1, 0, 48):
        assert_same(adapter, prepared, features(tokens))
    assert cuda.replays == 8


def test_the_tail_of_an_earlier_clip_does_not_leak_even_as_nan(cuda: FakeCuda, adapter: Adapter) -> None:  # noqa: ARG001
    prepared = make(adapter)
    prepared(torch.full((1, 48, 24), torch.nan), torch.zeros(1, 6, 16))
    assert_same(adapter, prepared, features(20))


def test_grids_and_lengths_change_from_call_to_call(cuda: FakeCuda, adapter: Adapter) -> None:  # noqa: ARG001
    prepared = make(adapter, batch=2)
    grids = {"vlm_grid": (1, 4, 10), "dino_grid": (1, 2, 3)}
    lengths = torch.tensor([40, 3])
    for options in ({}, grids, {"vlm_lengths": lengths}, {}, grids | {"vlm_lengths": lengths}, {}):
        assert_same(adapter, prepared, features(40, 2), **options)


def test_features_written_into_the_buffers_are_read_in_place(cuda: FakeCuda, adapter: Adapter) -> None:  # noqa: ARG001
    prepared = make(adapter)
    vlm, dino = prepared.inputs(48)
    pair = features(48)
    vlm.copy_(pair[0])
    dino.copy_(pair[1])
    expected = prepared(*pair).clone()
    assert torch.equal(prepared(vlm, dino), expected)


@pytest.mark.parametrize("tokens", [48, 20])
def test_what_lies_elsewhere_is_copied_on_the_stream_of_the_call(
    cuda: FakeCuda, adapter: Adapter, tokens: int
) -> None:
    prepared = make(adapter)
    cuda.stream = 7
    vlm, dino = features(tokens)
    vlm_buffer, dino_buffer = (x.data_ptr() for x in prepared.inputs(tokens))
    assert_same(adapter, prepared, (vlm, dino))
    vlm_copy = (vlm_buffer, vlm.data_ptr(), tokens * 24 * 4, 7)
    dino_copy = (dino_buffer, dino.data_ptr(), 6 * 16 * 4, 7)
    assert cuda.copies == [vlm_copy, dino_copy]
    prepared(prepared.inputs(tokens)[0][:, :tokens], dino)
    assert cuda.copies == [vlm_copy, dino_copy, dino_copy]


def test_clips_that_leave_rows_over_are_not_copied_as_one_range(cuda: FakeCuda, adapter: Adapter) -> None:
    prepared = make(adapter, batch=2)
    assert_same(adapter, prepared, features(40, 2))
    assert [size for _, _, size, _ in cuda.copies] == [2 * 6 * 16 * 4]
    assert_same(adapter, prepared, features(48, 2))
    assert [size for _, _, size, _ in cuda.copies[1:]] == [2 * 48 * 24 * 4, 2 * 6 * 16 * 4]


def test_pytorch_copies_where_the_driver_would_turn_to_another_device(
    cuda: FakeCuda, adapter: Adapter
) -> None:
    prepared = make(adapter)
    cuda.current = False
    for tokens in (48, 20):
        assert_same(adapter, prepared, features(tokens))
    assert not cuda.copies


def test_rows_of_the_buffer_itself_are_not_moved_within_it(cuda: FakeCuda, adapter: Adapter) -> None:
    prepared = make(adapter)
    vlm, dino = prepared.inputs(48)
    with pytest.raises(RuntimeError, match="single memory location"):
        prepared(vlm[:, 1:41], dino)
    assert not cuda.copies


def test_each_stream_keeps_a_replica_of_its_own(cuda: FakeCuda, adapter: Adapter) -> None:
    prepared = make(adapter, replicas=2)
    assert cuda.pools == 2
    cuda.stream = 7
    first = prepared(*features(48))
    kept = first.clone()
    cuda.stream = 8
    second = prepared(*features(48))
    assert first.data_ptr() != second.data_ptr()
    assert torch.equal(first, kept)
    cuda.stream = 7
    assert prepared(*features(48)).data_ptr() == first.data_ptr()
    cuda.stream = 9
    with pytest.raises(ValueError, match="2 replicas: each stream that calls needs one of its own"):
        prepared(*features(48))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda v, d: ((v.repeat(1, 2, 1), d), {}),
            "vlm_hidden_states of 96 tokens: the largest bucket is 48",
        ),
        (lambda v, d: ((v[..., :20].contiguous(), d), {}), r"shape \(1, 48, 20\): must be \[1, tokens, 24\]"),
        (lambda v, d: ((v[:, ::2], d), {}), "vlm_hidden_states: must be contiguous"),
        (
            lambda v, d: ((v, d.half()), {}),
            "dino_hidden_states of torch.float16 on cpu: must be torch.float32",
        ),
        (lambda v, d: ((v.to("meta"), d), {}), "vlm_hidden_states of torch.float32 on meta"),
        (lambda v, d: ((v, d[:, :5].contiguous()), {}), "dino_hidden_states of 5 tokens: prepared for 6"),
        (lambda v, d: ((v[0], d), {}), "must be .1, tokens, 24"),
        (lambda v, d: ((v, d), {"vlm_grid": (1, 4, 4)}), "has 16 tokens, vlm_hidden_states has 48"),
        (lambda v, d: ((v, d), {"vlm_grid": (48, 1, 1)}), "every size must be at most that of"),
        (lambda v, d: ((v, d), {"vlm_lengths": torch.tensor([49])}), "vlm_lengths 49: must be from 0 to 48"),
        (lambda v, d: ((v, d), {"vlm_lengths": torch.tensor([1.0])}), "must be whole numbers"),
    ],
)
def test_what_it_refuses(
    cuda: FakeCuda, adapter: Adapter, change: Callable[..., tuple[Any, Any]], message: str
) -> None:
    pair, options = change(*features(48))
    prepared = make(adapter)
    # Before and after calls that were accepted, whose like are not checked in full.
    for _ in range(2):
        before = cuda.replays
        with pytest.raises(ValueError, match=message):
            prepared(*pair, **options)
        assert cuda.replays == before
        for accepted in ({}, {"vlm_lengths": torch.tensor([20])}, {"vlm_grid": (1, 6, 8)}):
            assert_same(adapter, prepared, features(48), **accepted)


def test_it_says_what_it_uses(cuda: FakeCuda, adapter: Adapter) -> None:  # noqa: ARG001
    report = make(adapter, replicas=2).report()
    assert report.buckets == BUCKETS
    assert report.replicas == 2
    assert 0.1 < report.weights_mb < 1
    assert "graph" in report.path
