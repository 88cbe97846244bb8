"""How calls reach a graph's buffers, with a stand-in for CUDA that replays on the CPU; see test_replicated.py."""

from __future__ import annotations

import pytest
import torch

from foresight.adapters import Adapter

from .fake_cuda import FakeCuda, assert_same, features, make, small_adapter


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


@pytest.fixture
def adapter() -> Adapter:
    return small_adapter()


def test_clips_of_one_call_have_lengths_of_their_own(cuda: FakeCuda, adapter: Adapter) -> None:  # noqa: ARG001
    prepared = make(adapter, "graph", batch=2)
    grids = {"vlm_grid": (1, 4, 10), "dino_grid": (1, 2, 3)}
    lengths = torch.tensor([40, 3])
    for options in ({}, grids, {"vlm_lengths": lengths}, {}, grids | {"vlm_lengths": lengths}, {}):
        assert_same(adapter, prepared, features(40, 2), **options)


@pytest.mark.parametrize("tokens", [48, 20])
def test_what_lies_elsewhere_is_copied_on_the_stream_of_the_call(
    cuda: FakeCuda, adapter: Adapter, tokens: int
) -> None:
    prepared = make(adapter, "graph")
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
    prepared = make(adapter, "graph", batch=2)
    assert_same(adapter, prepared, features(40, 2))
    assert [size for _, _, size, _ in cuda.copies] == [2 * 6 * 16 * 4]
    assert_same(adapter, prepared, features(48, 2))
    assert [size for _, _, size, _ in cuda.copies[1:]] == [2 * 48 * 24 * 4, 2 * 6 * 16 * 4]


def test_pytorch_copies_where_the_driver_would_turn_to_another_device(
    cuda: FakeCuda, adapter: Adapter
) -> None:
    prepared = make(adapter, "graph")
    cuda.current = False
    for tokens in (48, 20):
        assert_same(adapter, prepared, features(tokens))
    assert not cuda.copies


def test_rows_of_the_buffer_itself_are_not_moved_within_it(cuda: FakeCuda, adapter: Adapter) -> None:
    prepared = make(adapter, "graph")
    vlm, dino = prepared.inputs(48)
    with pytest.raises(RuntimeError, match="single memory location"):
        prepared(vlm[:, 1:41], dino)
    assert not cuda.copies


def test_a_replicas_graphs_share_a_pool(cuda: FakeCuda, adapter: Adapter) -> None:
    make(adapter, "graph", replicas=2)
    assert cuda.pools == 2
