"""How calls reach the persistent kernel, with a stand-in that computes on the CPU; see test_replicated.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from foresight.adapters import Adapter, adapter_config
from foresight.adapters.packing import pack_adapter
from foresight.kernels.persistent_kernel import SHARED_MEMORY
from foresight.kernels.persistent_shape import PersistentShape
from foresight.kernels.wide_shape import WideShape
from foresight.runtime import persistent, prepared
from foresight.runtime.persistent import load_persistent_kernel, persistent_shape

from .fake_cuda import BUCKETS, CPU, FakeCuda, assert_same, features, make, small_adapter

CUDA = torch.device("cuda", 0)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


@pytest.fixture
def adapter() -> Adapter:
    return small_adapter()


def misaligned(x: Tensor) -> Tensor:
    """The same numbers at an address that is no multiple of 16 bytes."""
    memory = torch.empty(x.numel() + 1)[1:]
    return memory.view(x.shape).copy_(x)


def test_a_bucket_is_tried_when_it_is_made(cuda: FakeCuda, adapter: Adapter) -> None:
    cuda.stream = 7
    made = make(adapter, "persistent", replicas=2)
    buffers = [tuple(x.data_ptr() for x in made.inputs(tokens)) for tokens in BUCKETS]
    assert cuda.launches[:2] == [(*pair, 7) for pair in buffers]
    assert len(cuda.launches) == 4


def test_a_clip_of_a_buckets_size_is_read_where_it_lies(cuda: FakeCuda, adapter: Adapter) -> None:
    made = make(adapter, "persistent")
    for stream, tokens in ((7, 48), (7, 16), (7, 48)):
        cuda.stream = stream
        vlm, dino = features(tokens)
        assert_same(adapter, made, (vlm, dino))
        assert cuda.launches[-1] == (vlm.data_ptr(), dino.data_ptr(), stream)
    assert not cuda.copies


def test_a_shorter_clip_is_copied_because_the_kernel_may_look_at_every_row(
    cuda: FakeCuda, adapter: Adapter
) -> None:
    made = make(adapter, "persistent")
    cuda.stream = 7
    vlm, dino = features(20)
    assert_same(adapter, made, (vlm, dino))
    buffer = made.inputs(20)[0].data_ptr()
    assert cuda.launches[-1] == (buffer, dino.data_ptr(), 7)
    assert cuda.copies == [(buffer, vlm.data_ptr(), 20 * 24 * 4, 7)]
    # What lies in the buffer already stays there.
    made(made.inputs(20)[0][:, :20], dino)
    assert len(cuda.copies) == 1


def test_what_is_not_aligned_is_copied(cuda: FakeCuda, adapter: Adapter) -> None:
    made = make(adapter, "persistent")
    vlm, dino = features(48)
    buffers = tuple(x.data_ptr() for x in made.inputs(48))
    assert_same(adapter, made, (misaligned(vlm), dino))
    assert cuda.launches[-1] == (buffers[0], dino.data_ptr(), 0)
    assert_same(adapter, made, (vlm, misaligned(dino)))
    assert cuda.launches[-1] == (vlm.data_ptr(), buffers[1], 0)
    cuda.current = False
    assert_same(adapter, made, (misaligned(vlm), misaligned(dino)))
    assert cuda.launches[-1] == (*buffers, 0)


def test_nan_stays_nan(cuda: FakeCuda, adapter: Adapter) -> None:  # noqa: ARG001
    made = make(adapter, "persistent")
    vlm, dino = features(48)
    vlm[0, 3, 5] = torch.nan
    assert made(vlm, dino).isnan().all()
    vlm[0, 3:] = torch.nan
    assert_same(adapter, made, (vlm.nan_to_num(), dino), vlm_lengths=torch.tensor([3]))
    assert not made(vlm, dino, vlm_lengths=torch.tensor([3])).isnan().any()


class FakeDevice:
    """A GPU of some compute capability, and a kernel that fails to load or is what it was made from."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] = (9, 0)) -> None:
        major, minor = capability
        properties = SimpleNamespace(major=major, minor=minor)
        self.error: Exception | None = None
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
        monkeypatch.setattr(persistent, "persistent_blocks", lambda _: 132)
        monkeypatch.setattr(persistent, "PersistentKernel", self.load)

    def load(self, *arguments: Any) -> Any:
        if self.error is not None:
            raise self.error
        return arguments


def test_the_kernel_is_made_for_the_adapter_and_the_gpu(
    monkeypatch: pytest.MonkeyPatch, adapter: Adapter
) -> None:
    FakeDevice(monkeypatch)
    packed = pack_adapter(adapter, CPU, torch.float16)
    loaded: Any = load_persistent_kernel(packed, CUDA, torch.float16, batch=1)
    shape, weights, device = loaded
    assert (shape.blocks, shape.dtype, shape.num_queries, shape.vlm_dim) == (132, torch.float16, 7, 24)
    assert (weights, device) == (packed, CUDA)


@pytest.mark.parametrize(
    ("architecture", "size", "shape"),
    [
        ("query", "10m", PersistentShape),
        ("query", "20m", WideShape),
        ("query", "50m", WideShape),
        ("query", "100m", WideShape),
        ("cross_attention", "100m", WideShape),
    ],
)
def test_which_kernel_an_adapter_takes(architecture: str, size: str, shape: type[PersistentShape]) -> None:
    grid = (3, 4, 4) if architecture == "cross_attention" else None
    config = adapter_config(architecture, size, vlm_dim=3584, dino_dim=1024, output_grid=grid)
    made = persistent_shape(config, torch.bfloat16, 132)
    assert type(made) is shape
    assert made.refusal(SHARED_MEMORY) is None
    # For every context that `prepare` takes.
    assert made.buffer_elements(prepared.MAX_CONTEXT - 256, 256) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 2}, "batch 2: the persistent kernel serves one clip at a time"),
        ({"capability": (8, 9)}, "compute capability 8.9: the persistent kernel is made for 9.0"),
        ({"capability": (10, 0)}, "compute capability 10.0: the persistent kernel is made for 9.0"),
        ({"error": ValueError("heads of 32: must be 64 wide")}, "heads of 32: must be 64 wide"),
        (
            {"error": OSError("no CUDA compiler library was found:\n no such file")},
            "the persistent kernel does not load: no CUDA compiler library was found: no such file",
        ),
        ({"error": RuntimeError("kernel.cu(7): error")}, "does not load: kernel.cu.7.: error"),
    ],
)
def test_why_it_cannot_serve_and_what_serves_instead(
    monkeypatch: pytest.MonkeyPatch, adapter: Adapter, options: dict[str, Any], message: str
) -> None:
    from foresight.runtime import graphed

    FakeDevice(monkeypatch, options.get("capability", (9, 0))).error = options.get("error")
    monkeypatch.setattr(prepared, "pack_adapter", lambda adapter, _, dtype: pack_adapter(adapter, CPU, dtype))
    monkeypatch.setattr(graphed, "GraphedAdapter", lambda *_, **__: "graph")
    arguments = {"batch": options.get("batch", 1)}
    with pytest.raises(ValueError, match=f"^path 'persistent': .*{message}") as caught:
        prepared.prepare(adapter, CUDA, torch.bfloat16, path="persistent", **arguments)
    assert "\n" not in str(caught.value)
    for path in ("auto", "graph"):
        served: Any = prepared.prepare(adapter, CUDA, torch.bfloat16, path=path, **arguments)  # type: ignore[arg-type]
        assert served == "graph"


def test_it_comes_first_where_it_serves(monkeypatch: pytest.MonkeyPatch, adapter: Adapter) -> None:
    from foresight.runtime import graphed

    FakeDevice(monkeypatch)
    monkeypatch.setattr(prepared, "pack_adapter", lambda adapter, _, dtype: pack_adapter(adapter, CPU, dtype))
    monkeypatch.setattr(persistent, "PersistentAdapter", lambda _, packed, *__, **___: ("persistent", packed))
    monkeypatch.setattr(graphed, "GraphedAdapter", lambda _, packed, *__, **___: ("graph", packed))
    for path, expected in (("auto", "persistent"), ("persistent", "persistent"), ("graph", "graph")):
        made: Any = prepared.prepare(adapter, CUDA, torch.bfloat16, path=path)  # type: ignore[arg-type]
        served, packed = made
        assert served == expected
        # Nothing of what the kernel has rearranged is kept twice.
        for linear in (packed.vlm, packed.dino, packed.keys_values, packed.out):
            assert bool(linear.weight.numel()) == (served == "graph")


def test_a_launch_that_the_device_refuses_leaves_the_graph(
    monkeypatch: pytest.MonkeyPatch, adapter: Adapter
) -> None:
    from foresight.runtime import graphed

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("a cooperative launch: the CUDA driver returned\nCOOPERATIVE_LAUNCH_TOO_LARGE")

    FakeDevice(monkeypatch)
    monkeypatch.setattr(prepared, "pack_adapter", lambda adapter, _, dtype: pack_adapter(adapter, CPU, dtype))
    monkeypatch.setattr(persistent, "PersistentAdapter", refuse)
    monkeypatch.setattr(graphed, "GraphedAdapter", lambda _, packed, *__, **___: packed)
    packed: Any = prepared.prepare(adapter, CUDA, torch.bfloat16)
    assert packed.out.weight.numel()
    with pytest.raises(ValueError, match=r"^path 'persistent': .* returned COOPERATIVE_LAUNCH_TOO_LARGE$"):
        prepared.prepare(adapter, CUDA, torch.bfloat16, path="persistent")
