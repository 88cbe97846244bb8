"""The kernels under Triton's interpreter, on a CPU; test_interpreter.py runs this file in its own process."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from foresight.adapters import Adapter, AdapterBody, AdapterConfig, build_adapter, packing
from foresight.kernels import Launch, LaunchTable, launches, reference, using_table
from foresight.kernels.attention import launch_attend
from foresight.kernels.context import launch_context
from foresight.kernels.linear import launch_linear
from foresight.kernels.product import launch_product

from .shapes import Make, Sizes

# The interpreter computes in numpy, which has no bf16.
DTYPES = (torch.float32, torch.float16)
SIZES = (Sizes(), replace(Sizes(), batch=3, heads=1, head_dim=64, queries=35))


def assert_close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    tolerance = 2e-5 if dtype == torch.float32 else 4e-3
    assert torch.isfinite(actual).all()
    assert (actual.float() - expected.float()).abs().max() <= tolerance * expected.abs().max()


@pytest.fixture(params=SIZES, ids=["one", "batch"])
def sizes(request: pytest.FixtureRequest) -> Sizes:
    chosen: Sizes = request.param
    return chosen


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("splits", [1, 3])
def test_context(sizes: Sizes, dtype: torch.dtype, splits: int) -> None:
    arguments = Make(sizes, dtype).context()
    project = Launch(rows=16, columns=32, depth=16, splits=splits)
    actual = launch_context(*arguments, project=project, finish=Launch(rows=4), programmatic=0)
    assert_close(actual, reference.encode_context(*arguments), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_product(sizes: Sizes, dtype: torch.dtype) -> None:
    arguments = Make(sizes, dtype).product()
    launch = Launch(rows=16, columns=64, depth=32)
    actual = launch_product(*arguments, launch=launch, programmatic=0)
    assert_close(actual, reference.product(*arguments), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["up", "down", "out"])
@pytest.mark.parametrize("depth", [32, 512])
def test_linear(sizes: Sizes, dtype: torch.dtype, kind: str, depth: int) -> None:
    arguments = Make(sizes, dtype).linear(kind)
    launch = Launch(rows=16, columns=32, depth=depth)
    actual = launch_linear(*arguments, launch=launch, programmatic=0)
    for one, other in zip(actual, reference.fused_linear(*arguments), strict=True):
        assert one.shape == other.shape
        if one.numel():
            assert_close(one, other, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("splits", [2, 5])
@pytest.mark.parametrize("activation", [False, True])
def test_linear_in_parts(sizes: Sizes, dtype: torch.dtype, splits: int, activation: bool) -> None:
    """With a residual as in "down", or with a GELU as nothing has it without a norm."""
    x, weight, bias, sums, residual, _ = Make(sizes, dtype).linear("down")
    arguments = (x, weight, bias, sums, None if activation else residual, activation)
    launch = Launch(rows=32, columns=32, depth=16, splits=splits)
    actual = launch_linear(*arguments, launch=launch, programmatic=0)
    for one, other in zip(actual, reference.fused_linear(*arguments), strict=True):
        assert one.shape == other.shape
        if one.numel():
            assert_close(one, other, dtype)


@pytest.mark.parametrize("kind", ["up", "out"])
def test_a_norm_needs_whole_rows(sizes: Sizes, kind: str) -> None:
    arguments = Make(sizes, torch.float32).linear(kind)
    launch = Launch(rows=16, columns=32, depth=16, splits=3)
    actual = launch_linear(*arguments, launch=launch, programmatic=0)[0]
    assert_close(actual, reference.fused_linear(*arguments)[0], torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["first", "cross", "self"])
@pytest.mark.parametrize("splits", [1, 3])
def test_attend(sizes: Sizes, dtype: torch.dtype, kind: str, splits: int) -> None:
    arguments = Make(sizes, dtype).attend(kind)
    attend, project = (
        Launch(depth=16, splits=splits),
        Launch(rows=16, columns=32, depth=32),
    )
    actual = launch_attend(*arguments, attend=attend, project=project, programmatic=0)
    for one, other in zip(actual, reference.attend(*arguments), strict=True):
        assert_close(one, other, dtype)


SMALL = LaunchTable(
    device="none",
    programmatic=0,
    entries={
        "project": {(32, 9, 96, 64): Launch(rows=16, columns=32, depth=32, splits=2)},
        "finish": {(41, 96, 64): Launch(rows=4)},
        "product": {(41, 64, 256): Launch(rows=32, columns=64, depth=32)},
        "linear": {(20, 64, 64): Launch(rows=16, columns=64, depth=64)},
        "attend": {(20, 2, 41, 1): Launch(depth=32, splits=2)},
    },
)


def small_adapter(architecture: str) -> Adapter:
    torch.manual_seed(0)
    adapter = build_adapter(
        AdapterConfig(
            architecture=architecture,
            vlm_dim=96,
            dino_dim=32,
            hidden_dim=64,
            num_layers=2,
            num_heads=2,
            ff_dim=80,
            num_queries=20,
            output_dim=72,
            output_grid=(2, 2, 5) if architecture == "cross_attention" else None,
        )
    )
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return adapter.eval()


@pytest.mark.parametrize("architecture", ["query", "cross_attention"])
def test_a_whole_adapter(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every length the kernels' chain is the adapter, whatever lies behind the length."""
    adapter = small_adapter(architecture)
    packed = packing.pack_adapter(adapter, torch.device("cpu"), torch.float32)
    monkeypatch.setattr(packing, "implementation", lambda _: launches)
    body = adapter.get_submodule("body")
    assert isinstance(body, AdapterBody)
    table = packing.positions_table(body, packed, (9, 32), ((1, 3, 3), None))
    vlm, dino = torch.randn(3, 32, 96), torch.randn(3, 9, 32)
    for lengths in ([32, 16, 0], [1, 31, 15]):
        counts = torch.tensor(lengths, dtype=torch.int32)
        padded = vlm.clone()
        padded[torch.arange(32) >= counts[:, None]] = torch.nan
        with torch.no_grad(), using_table(SMALL):
            actual = packed.forward(padded, dino, table, counts)
            expected = adapter(vlm, dino, dino_grid=(1, 3, 3), vlm_lengths=counts)
        assert actual.shape == expected.shape
        assert_close(actual, expected, torch.float32)


# numpy, which interprets the kernels, warns where a GPU does not.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_nan_in_a_true_token_reaches_every_output(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = small_adapter("query")
    packed = packing.pack_adapter(adapter, torch.device("cpu"), torch.float32)
    monkeypatch.setattr(packing, "implementation", lambda _: launches)
    vlm, dino = torch.randn(2, 32, 96), torch.randn(2, 9, 32)
    vlm[0, 3, 5] = torch.nan
    with torch.no_grad(), using_table(SMALL):
        lengths = torch.tensor([32, 32], dtype=torch.int32)
        output = packed.forward(vlm, dino, torch.zeros(41, 64), lengths)
    assert output[0].isnan().all()
    assert torch.isfinite(output[1]).all()
