"""A prepared adapter gives what the adapter gives, and says what it cannot take."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from foresight.adapters import Adapter, adapter_config, build_adapter, load_adapter
from foresight.runtime.prepared import PreparedAdapter, prepare

from ..adapters.trained import as_if_trained

BUCKETS = (16, 48)
GRIDS = {"vlm_grid": (1, 6, 8), "dino_grid": (1, 5, 5)}
NANO_ADAPTERS = Path(__file__).parents[2] / "models" / "weights" / "nano" / "adapters"


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def make_adapter(architecture: str = "query", size: str = "5m", **sizes: int) -> Adapter:
    """An adapter whose norms, biases and queries are as far from their start as training takes them."""
    grid = (2, 4, 6) if architecture == "cross_attention" else None
    widths = {"vlm_dim": 96, "dino_dim": 64, "output_dim": 160} | sizes
    return as_if_trained(build_adapter(adapter_config(architecture, size, output_grid=grid, **widths)))


def features(batch: int, tokens: int, adapter: Adapter, dino_tokens: int = 25) -> tuple[Tensor, Tensor]:
    config = adapter.config
    return torch.randn(batch, tokens, config.vlm_dim), torch.randn(batch, dino_tokens, config.dino_dim)


@pytest.mark.parametrize("architecture", ["query", "cross_attention"])
@pytest.mark.parametrize("options", [{}, GRIDS, {"vlm_lengths": torch.tensor([48, 0])}], ids=str)
def test_on_the_cpu_it_is_the_adapter(architecture: str, options: dict[str, object]) -> None:
    adapter = make_adapter(architecture)
    vlm, dino = features(2, 48, adapter)
    with torch.no_grad():
        expected = adapter(vlm, dino, **options)
        if "vlm_lengths" in options:
            vlm[1] = torch.nan
        actual = prepare(adapter, "cpu", torch.float32)(vlm, dino, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5)


def test_bf16_on_the_cpu_is_as_exact_as_eager() -> None:
    adapter = make_adapter().bfloat16()
    vlm, dino = (x.bfloat16() for x in features(2, 48, adapter))
    with torch.no_grad():
        expected = copy.deepcopy(adapter).float()(vlm.float(), dino.float(), **GRIDS)
        bound = 2 * (adapter(vlm, dino, **GRIDS) - expected).abs().max() + 1e-3
    actual = prepare(adapter, "cpu", torch.bfloat16)(vlm, dino, **GRIDS)  # type: ignore[arg-type]
    assert actual.dtype == torch.bfloat16
    assert (actual - expected).abs().max() <= bound


def test_nan_stays_nan() -> None:
    adapter = make_adapter()
    vlm, dino = features(1, 48, adapter)
    vlm[0, 3, 5] = torch.nan
    assert prepare(adapter, "cpu", torch.float32)(vlm, dino).isnan().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": torch.float16}, "dtype torch.float16: must be torch.float32 or torch.bfloat16 on the CPU"),
        ({"device": "meta"}, "device meta: must be a CUDA device or the CPU"),
        ({"device": "cuda"}, "dtype torch.float32: must be torch.bfloat16 or torch.float16 on CUDA"),
        ({"device": "cuda", "dtype": torch.float16, "buckets": ()}, "buckets (): must be one or more"),
        ({"device": "cuda", "dtype": torch.float16, "buckets": (4096,)}, "context of 4352 tokens"),
        ({"device": "cuda", "dtype": torch.float16, "batch": 9}, "batch 9: must be from 1 to 8"),
        ({"device": "cuda", "dtype": torch.float16, "replicas": 0}, "replicas 0: must be at least 1"),
        ({"path": "quick"}, "path 'quick': must be 'auto', 'persistent' or 'graph'"),
        ({"path": "graph"}, "path 'graph': must be 'auto' on the CPU"),
    ],
)
def test_it_refuses_what_it_cannot_serve(arguments: dict[str, object], message: str) -> None:
    arguments = {"device": "cpu", "dtype": torch.float32} | arguments
    with pytest.raises(ValueError, match=re.escape(message)):
        prepare(make_adapter(), **arguments)  # type: ignore[arg-type]


def test_it_refuses_an_adapter_without_a_packed_form() -> None:
    adapter = build_adapter(adapter_config("mlp", "10m", vlm_dim=96, dino_dim=64, output_grid=(2, 4, 6)))
    with pytest.raises(ValueError, match="architecture 'mlp': only query and cross_attention pack"):
        prepare(adapter, "cpu", torch.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda vlm, dino: (vlm[..., :90], dino), "vlm_hidden_states"),
        (lambda vlm, dino: (vlm.mT.contiguous().mT, dino), "vlm_hidden_states: must be contiguous"),
        (lambda vlm, dino: (vlm, dino.half()), "dino_hidden_states of torch.float16 on cpu"),
    ],
)
def test_it_refuses_other_features_on_the_cpu(change: object, message: str) -> None:
    adapter = make_adapter()
    with pytest.raises(ValueError, match=message):
        prepare(adapter, "cpu", torch.float32)(*change(*features(1, 16, adapter)))  # type: ignore[operator]


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
paths = pytest.mark.parametrize("path", ["persistent", "graph"])
# The sizes have persistent kernels of their own.
full_sizes = pytest.mark.parametrize(
    ("size", "path"), [("10m", "persistent"), ("10m", "graph"), ("100m", "persistent")]
)
dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])


def on_gpu(
    adapter: Adapter, dtype: torch.dtype, path: Any, buckets: tuple[int, ...] = BUCKETS, **options: int
) -> Any:
    if path == "persistent" and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs compute capability 9.0")
    return prepare(adapter, "cuda", dtype, buckets, path=path, **({"dino_tokens": 25} | options))


def assert_as_exact_as_eager(
    adapter: Adapter, prepared: PreparedAdapter, vlm: Tensor, dino: Tensor, **options: object
) -> None:
    """No further from the fp32 adapter than twice what rounding costs the eager one."""
    dtype = prepared.dtype
    vlm, dino = vlm.to("cuda", dtype), dino.to("cuda", dtype)
    with torch.no_grad():
        rounded = copy.deepcopy(adapter).to("cuda", dtype)
        expected = copy.deepcopy(rounded).float()(vlm.float(), dino.float(), **options)
        eager = rounded(vlm, dino, **options)
        actual = prepared(vlm, dino, **options)  # type: ignore[arg-type]
    bound = 2 * (eager - expected).abs().max() + 1e-3
    assert (actual - expected).abs().max() <= bound


@pytest.mark.gpu
@gpu
@dtypes
@pytest.mark.parametrize("architecture", ["query", "cross_attention"])
@pytest.mark.parametrize(("path", "batch"), [("persistent", 1), ("graph", 1), ("graph", 3), ("graph", 8)])
def test_parity_around_every_edge_of_a_bucket(
    architecture: str, dtype: torch.dtype, path: str, batch: int
) -> None:
    adapter = make_adapter(architecture)
    prepared = on_gpu(copy.deepcopy(adapter).to(dtype), dtype, path, batch=batch)
    for tokens in (1, 15, 16, 17, 47, 48):
        assert_as_exact_as_eager(adapter, prepared, *features(batch, tokens, adapter))
    assert_as_exact_as_eager(adapter, prepared, *features(batch, 48, adapter), **GRIDS)


@pytest.mark.gpu
@gpu
@dtypes
@pytest.mark.parametrize(("path", "batch"), [("persistent", 1), ("graph", 3)])
def test_what_lies_behind_the_true_lengths_does_not_leak(dtype: torch.dtype, path: str, batch: int) -> None:
    adapter = make_adapter()
    prepared = on_gpu(copy.deepcopy(adapter).to(dtype), dtype, path, batch=batch)
    for place in ("cpu", "cuda"):
        for lengths in torch.tensor([48, 17, 0], device=place).split(batch):
            vlm, dino = features(batch, 48, adapter)
            vlm[torch.arange(48) >= lengths.cpu()[:, None]] = torch.nan
            assert_as_exact_as_eager(adapter, prepared, vlm, dino, vlm_lengths=lengths)
    # A shorter clip after a longer one: the longer one's tokens, here NaN, are still in the buffer.
    poison = prepared.inputs(48)[0].fill_(torch.nan)
    assert prepared(poison, torch.zeros(batch, 25, 64, device="cuda", dtype=dtype)).isnan().all()
    assert_as_exact_as_eager(adapter, prepared, *features(batch, 40, adapter))


@pytest.mark.gpu
@gpu
@dtypes
@pytest.mark.parametrize("size", ["10m", "20m", "50m", "100m"])
@paths
def test_parity_at_the_full_sizes(size: str, path: str, dtype: torch.dtype) -> None:
    adapter = make_adapter("query", size, vlm_dim=3584, dino_dim=1024, output_dim=4096)
    rounded = copy.deepcopy(adapter).to(dtype)
    prepared = on_gpu(rounded, dtype, path, (64, 384, 1536), dino_tokens=256)
    for tokens in (1536, 1535, 385, 384, 383, 65, 64, 63, 1):
        vlm, dino = features(1, tokens, adapter, dino_tokens=256)
        assert_as_exact_as_eager(adapter, prepared, vlm, dino)
        vlm[:, tokens // 2 :] = torch.nan
        lengths = torch.tensor([tokens // 2], device="cuda")
        assert_as_exact_as_eager(adapter, prepared, vlm, dino, vlm_lengths=lengths)


@pytest.mark.gpu
@gpu
@full_sizes
def test_nan_in_any_token_reaches_every_output_at_the_full_size(size: str, path: str) -> None:
    adapter = make_adapter("query", size, vlm_dim=3584, dino_dim=1024, output_dim=4096).bfloat16()
    prepared = on_gpu(adapter, torch.bfloat16, path, (384,), dino_tokens=256)
    pair = [x.to("cuda", torch.bfloat16) for x in features(1, 384, adapter, dino_tokens=256)]
    expected = prepared(*pair).clone()
    assert not expected.isnan().any()
    for stream, token, channel in ((0, 0, 0), (0, 383, 3583), (1, 255, 1023)):
        spoilt = [x.clone() for x in pair]
        spoilt[stream][0, token, channel] = torch.nan
        assert prepared(*spoilt).isnan().all()
        assert torch.equal(prepared(*pair), expected)


@pytest.mark.gpu
@gpu
@paths
@dtypes
@pytest.mark.parametrize("mode", ["conditioning", "latent"])
def test_parity_of_the_shipped_adapter(mode: str, dtype: torch.dtype, path: str) -> None:
    folder = NANO_ADAPTERS / f"{mode}_10m"
    if not folder.is_dir():
        pytest.skip(f"{folder.name} is not here")
    adapter = load_adapter(folder)
    prepared = on_gpu(copy.deepcopy(adapter).to(dtype), dtype, path, (48, 96), dino_tokens=256)
    for tokens in (32, 48, 96):
        assert_as_exact_as_eager(adapter, prepared, *features(1, tokens, adapter, dino_tokens=256))


@pytest.mark.gpu
@gpu
@full_sizes
def test_a_thousand_calls_repeat_to_the_bit_and_do_not_drift(size: str, path: str) -> None:
    adapter = make_adapter("query", size, vlm_dim=3584, dino_dim=1024, output_dim=4096)
    prepared = on_gpu(copy.deepcopy(adapter).bfloat16(), torch.bfloat16, path, (384,), dino_tokens=256)
    buffers = prepared.inputs(384)
    first, expected = None, torch.empty(0)
    for call in range(1000):
        generator = torch.Generator("cuda").manual_seed(call)
        vlm, dino = (torch.randn(x.shape, generator=generator, device="cuda").to(x) for x in buffers)
        output = prepared(vlm, dino).clone()
        # Where they lie, and in the buffers.
        assert torch.equal(output, prepared(vlm, dino))
        buffers[0].copy_(vlm)
        buffers[1].copy_(dino)
        assert torch.equal(output, prepared(*buffers))
        if path == "graph":
            assert torch.equal(output, prepared.replica()[0].forward())
        if first is None:
            first, expected = (vlm, dino), output
        if call % 100 == 99:
            assert_as_exact_as_eager(adapter, prepared, vlm, dino)
    assert first is not None
    assert torch.equal(prepared(*first), expected)


def results_of_fresh_features(prepared: Any, batch: int, *, in_place: bool) -> list[Tensor]:
    """Outputs of 300 calls without a wait between, every clip's memory given back at once."""
    generator = torch.Generator("cuda").manual_seed(2)
    outputs = []
    for call in range(300):
        tokens = (48, 20, 16)[call % 3]
        vlm = torch.randn(batch, tokens, 96, generator=generator, device="cuda", dtype=torch.bfloat16)
        dino = torch.randn(batch, 25, 64, generator=generator, device="cuda", dtype=torch.bfloat16)
        if in_place and (batch == 1 or tokens != 20):
            vlm_buffer, dino_buffer = prepared.inputs(tokens)
            vlm, dino = vlm_buffer[:, :tokens].copy_(vlm), dino_buffer.copy_(dino)
        outputs.append(prepared(vlm, dino).clone())
        del vlm, dino
    torch.cuda.synchronize()
    return outputs


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize(("path", "batch"), [("persistent", 1), ("graph", 1), ("graph", 3)])
def test_calls_keep_the_order_of_the_stream(path: str, batch: int) -> None:
    adapter = make_adapter().bfloat16()
    prepared = on_gpu(adapter, torch.bfloat16, path, batch=batch)
    expected = results_of_fresh_features(prepared, batch, in_place=True)
    actual = results_of_fresh_features(prepared, batch, in_place=False)
    assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))


@pytest.mark.gpu
@gpu
@paths
def test_a_thread_that_has_not_used_cuda_may_call(path: str) -> None:
    adapter = make_adapter().bfloat16()
    prepared = on_gpu(adapter, torch.bfloat16, path)
    pair = tuple(x.to("cuda", torch.bfloat16) for x in features(1, 48, adapter))
    expected = prepared(*pair).clone()
    for x in prepared.inputs(48):
        x.zero_()
    with ThreadPoolExecutor(1) as thread:
        for _ in range(2):
            assert torch.equal(thread.submit(prepared, *pair).result(), expected)


@pytest.mark.gpu
@gpu
@paths
def test_a_call_allocates_nothing_and_does_not_wait(path: str) -> None:
    adapter = make_adapter().bfloat16()
    prepared = on_gpu(adapter, torch.bfloat16, path)
    vlm, dino = (x.to("cuda", torch.bfloat16) for x in features(1, 48, adapter))
    prepared(vlm, dino, **GRIDS)  # type: ignore[arg-type]
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
            torch.cuda.set_sync_debug_mode("error")
        for _ in range(10):
            prepared(vlm, dino, **GRIDS)  # type: ignore[arg-type]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


@pytest.mark.gpu
@gpu
@paths
def test_streams_have_a_replica_each(path: str) -> None:
    adapter = make_adapter().bfloat16()
    prepared = on_gpu(adapter, torch.bfloat16, path, replicas=2)
    pairs = [tuple(x.to("cuda", torch.bfloat16) for x in features(1, 48, adapter)) for _ in range(2)]
    expected = [on_gpu(adapter, torch.bfloat16, path)(*pair).clone() for pair in pairs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(3)]
    for _ in range(50):
        outputs = []
        for pair, stream in zip(pairs, streams, strict=False):
            with torch.cuda.stream(stream):
                outputs.append(prepared(*pair))
        torch.cuda.synchronize()
        assert all(torch.equal(one, other) for one, other in zip(outputs, expected, strict=True))
    with torch.cuda.stream(streams[2]), pytest.raises(ValueError, match="2 replicas: each stream"):
        prepared(*pairs[0])


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("tokens", [48, 20])
def test_a_launch_may_be_captured_in_a_graph_of_the_callers(tokens: int) -> None:
    adapter = make_adapter().bfloat16()
    direct, captured = (on_gpu(adapter, torch.bfloat16, "persistent") for _ in range(2))
    vlm, dino = (x.to("cuda", torch.bfloat16) for x in features(1, tokens, adapter))
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        output = captured(vlm, dino)
    for _ in range(20):
        vlm.normal_()
        dino.normal_()
        expected = direct(vlm, dino).clone()
        graph.replay()
        assert torch.equal(output, expected)


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("size", ["10m", "100m"])
def test_the_persistent_kernel_comes_first_where_it_serves(size: str) -> None:
    adapter = make_adapter("query", size).bfloat16()
    on_gpu(adapter, torch.bfloat16, "persistent")
    alone, many = (on_gpu(adapter, torch.bfloat16, "auto", batch=batch).report().path for batch in (1, 2))
    assert alone == "persistent kernel, one cooperative launch a call"
    assert many == "fused Triton kernels, one CUDA graph replay a call"
    with pytest.raises(ValueError, match=r"^path 'persistent': batch 2: .* one clip at a time"):
        on_gpu(adapter, torch.bfloat16, "persistent", batch=2)


@pytest.mark.gpu
@gpu
@paths
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda vlm, dino: (vlm.repeat(1, 2, 1), dino), "of 96 tokens: the largest bucket is 48"),
        (lambda vlm, dino: (vlm[..., :90], dino), "vlm_hidden_states of shape"),
        (lambda vlm, dino: (vlm[:, ::2], dino), "vlm_hidden_states: must be contiguous"),
        (lambda vlm, dino: (vlm.cpu(), dino), "vlm_hidden_states of torch.bfloat16 on cpu"),
        (lambda vlm, dino: (vlm, dino.half()), "dino_hidden_states of torch.float16"),
        (lambda vlm, dino: (vlm, dino[:, :20].contiguous()), "dino_hidden_states of 20 tokens"),
        (lambda vlm, dino: (vlm.repeat(2, 1, 1), dino), "vlm_hidden_states of shape"),
    ],
)
def test_it_refuses_other_features_on_the_gpu(path: str, change: object, message: str) -> None:
    adapter = make_adapter().bfloat16()
    pair = (x.to("cuda", torch.bfloat16) for x in features(1, 48, adapter))
    with pytest.raises(ValueError, match=message):
        on_gpu(adapter, torch.bfloat16, path)(*change(*pair))  # type: ignore[operator]
