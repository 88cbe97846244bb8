"""The operators are registered as ahead-of-time compilation needs them, which needs no GPU to see."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch._functorch.aot_autograd import aot_export_module
from torch._subclasses.fake_tensor import FakeTensorMode

from .shapes import Arguments, Make, Sizes

pytest.importorskip("foresight.kernels.operators", reason="needs Triton")
from .compiled import pretended_device

MAKERS: dict[str, tuple[str, Callable[[Make], Arguments]]] = {
    "context": ("encode_context", Make.context),
    "product": ("product", Make.product),
    "up": ("fused_linear", lambda make: make.linear("up")),
    "down": ("fused_linear", lambda make: make.linear("down")),
    "first": ("attend", lambda make: make.attend("first")),
    "self": ("attend", lambda make: make.attend("self")),
}


def arguments_of(kernel: str, dtype: torch.dtype) -> tuple[str, Arguments]:
    name, make = MAKERS[kernel]
    # NaN behind the true lengths is unequal to itself.
    return name, tuple(
        x.nan_to_num() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for x in make(Make(Sizes(), dtype))
    )


@pytest.mark.parametrize("kernel", MAKERS)
def test_opcheck_passes(kernel: str) -> None:
    name, arguments = arguments_of(kernel, torch.float32)
    operator = getattr(torch.ops.foresight, name).default
    checks = ("test_schema", "test_faketensor")
    assert torch.library.opcheck(operator, arguments, test_utils=checks) == dict.fromkeys(checks, "SUCCESS")


@pytest.mark.parametrize(("kernel", "launches"), [("context", 2), ("product", 1), ("up", 1), ("first", 2)])
def test_a_trace_sees_the_kernels(kernel: str, launches: int) -> None:
    name, arguments = arguments_of(kernel, torch.bfloat16)
    operator = getattr(torch.ops.foresight, name)

    class Call(torch.nn.Module):
        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            rest = iter(tensors)
            result = operator(*(next(rest) if isinstance(x, torch.Tensor) else x for x in arguments))
            return result if isinstance(result, tuple) else (result,)

    tensors = [x for x in arguments if isinstance(x, torch.Tensor)]
    with pretended_device(), FakeTensorMode():
        placed = [torch.empty(x.shape, dtype=x.dtype, device="cuda") for x in tensors]
        graph, _ = aot_export_module(Call(), placed, trace_joint=False)
    targets = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert targets.count("triton_kernel_wrapper_functional") == launches
