"""What surrounds a graph or the persistent kernel: buckets, streams and refusals, with a stand-in for CUDA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch

from foresight.adapters import Adapter

from .fake_cuda import BUCKETS, FakeCuda, Form, assert_same, features, make, small_adapter

pytestmark = pytest.mark.parametrize("form", get_args(Form))


@pytest.fixture(autouse=True)
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


@pytest.fixture
def adapter() -> Adapter:
    return small_adapter()


def test_every_length_up_to_the_largest_bucket(cuda: FakeCuda, adapter: Adapter, form: Form) -> None:
    prepared = make(adapter, form)
    before = cuda.runs
    # Down as well as up: what a longer clip left in a buffer must not count.
    for tokens in (48, 47, 17, 16, 15, 1, 0, 48):
        assert_same(adapter, prepared, features(tokens))
    assert cuda.runs == before + 8


def test_the_tail_of_an_earlier_clip_does_not_leak_even_as_nan(adapter: Adapter, form: Form) -> None:
    prepared = make(adapter, form)
    prepared(torch.full((1, 48, 24), torch.nan), torch.zeros(1, 6, 16))
    assert_same(adapter, prepared, features(20))


@pytest.mark.parametrize("architecture", ["query", "cross_attention"])
def test_grids_and_lengths_change_from_call_to_call(form: Form, architecture: str) -> None:
    adapter = small_adapter(architecture)
    prepared = make(adapter, form)
    grids = {"vlm_grid": (1, 4, 10), "dino_grid": (1, 2, 3)}
    lengths = torch.tensor([30])
    for options in ({}, grids, {"vlm_lengths": lengths}, {}, grids | {"vlm_lengths": lengths}, {}):
        assert_same(adapter, prepared, features(40), **options)
    assert_same(adapter, prepared, features(48), vlm_lengths=torch.tensor([0]))
    assert_same(adapter, prepared, features(48))


def test_features_written_into_the_buffers_are_read_in_place(adapter: Adapter, form: Form) -> None:
    prepared = make(adapter, form)
    vlm, dino = prepared.inputs(48)
    pair = features(48)
    vlm.copy_(pair[0])
    dino.copy_(pair[1])
    expected = prepared(*pair).clone()
    assert torch.equal(prepared(vlm, dino), expected)


def test_each_stream_keeps_a_replica_of_its_own(cuda: FakeCuda, adapter: Adapter, form: Form) -> None:
    prepared = make(adapter, form, replicas=2)
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


def test_a_refused_call_takes_no_replica(cuda: FakeCuda, adapter: Adapter, form: Form) -> None:
    prepared = make(adapter, form)
    cuda.stream = 7
    for wrong in ({"vlm_lengths": torch.tensor([49])}, {"vlm_grid": (1, 7, 7)}):
        with pytest.raises(ValueError, match="49"):
            prepared(*features(48), **wrong)
    cuda.stream = 8
    assert_same(adapter, prepared, features(48))


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
    cuda: FakeCuda, adapter: Adapter, form: Form, change: Callable[..., tuple[Any, Any]], message: str
) -> None:
    pair, options = change(*features(48))
    prepared = make(adapter, form)
    # Before and after calls that were accepted, whose like are not checked in full.
    for _ in range(2):
        before = cuda.runs
        with pytest.raises(ValueError, match=message):
            prepared(*pair, **options)
        assert cuda.runs == before
        for accepted in ({}, {"vlm_lengths": torch.tensor([20])}, {"vlm_grid": (1, 6, 8)}):
            assert_same(adapter, prepared, features(48), **accepted)


def test_it_says_what_it_uses(adapter: Adapter, form: Form) -> None:
    report = make(adapter, form, replicas=2).report()
    assert report.buckets == BUCKETS
    assert report.replicas == 2
    packed = sum(x.numel() * x.element_size() for x in make(adapter, form).packed.tensors()) / 1e6
    # The persistent kernel keeps its weights rearranged, too.
    assert report.weights_mb == pytest.approx(packed * (2 if form == "persistent" else 1))
    assert form in report.path
