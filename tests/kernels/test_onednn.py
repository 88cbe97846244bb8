"""On a CPU oneDNN computes what the references do, with weights in its own order and as they come."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from foresight.kernels import onednn, reference

from .shapes import Arguments, Make, Sizes

pytestmark = pytest.mark.skipif(not onednn.available(), reason="this PyTorch has no oneDNN")


def reordered(arguments: Arguments, places: tuple[int, ...]) -> Arguments:
    return tuple(onednn.reorder(x) if place in places else x for place, x in enumerate(arguments))


def as_tuple(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize(
    ("name", "kind", "weights"),
    [
        ("encode_context", "context", (2, 3)),
        ("product", "product", (1,)),
        ("fused_linear", "up", (1,)),
        ("fused_linear", "down", (1,)),
        ("fused_linear", "out", (1,)),
        ("attend", "first", (2,)),
        ("attend", "self", (2,)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_it_is_the_reference(
    name: str, kind: str, weights: tuple[int, ...], dtype: torch.dtype, batch: int
) -> None:
    make = Make(replace(Sizes(), batch=batch), dtype)
    makers = {"encode_context": make.context, "product": make.product}
    one = makers[name]() if name in makers else getattr(make, name.removeprefix("fused_"))(kind)
    exact = tuple(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in one)
    expected, rounded = (as_tuple(getattr(reference, name)(*x)) for x in (exact, one))
    for arguments in (one, reordered(one, weights)):
        actual = as_tuple(getattr(onednn, name)(*arguments))
        for each, wanted, other in zip(actual, expected, rounded, strict=True):
            assert each.shape == wanted.shape
            if each.numel():
                bound = 2 * (other - wanted).abs().max() + 2e-5 * wanted.abs().max()
                assert (each - wanted).abs().max() <= bound
