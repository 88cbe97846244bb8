"""The kernels under Triton's interpreter, on a CPU; test_interpreter.py runs this file in its own process."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from foresight.kernels import Launch, reference
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
    launch = Launch(rows=16, columns=32, depth=depth, groups=2)
    actual = launch_linear(*arguments, launch=launch, programmatic=0)
    for one, other in zip(actual, reference.fused_linear(*arguments), strict=True):
        assert one.shape == other.shape
        if one.numel():
            assert_close(one, other, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["first", "cross", "made", "self"])
@pytest.mark.parametrize("splits", [1, 3])
def test_attend(sizes: Sizes, dtype: torch.dtype, kind: str, splits: int) -> None:
    arguments = Make(sizes, dtype).attend(kind)
    attend, project = (
        Launch(depth=16, groups=1, splits=splits),
        Launch(rows=16, columns=32, depth=32, groups=2),
    )
    actual = launch_attend(*arguments, attend=attend, project=project, programmatic=0)
    for one, other in zip(actual, reference.attend(*arguments), strict=True):
        assert_close(one, other, dtype)
