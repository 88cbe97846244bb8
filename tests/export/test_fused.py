"""The fused form on the kernels' references."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode

from foresight.adapters import EngineBucket
from foresight.adapters.packing import PACKED_ARCHITECTURES
from foresight.export.fused import FusedAdapter
from foresight.export.parity import example_inputs, measure_parity, parity_cases

from .conftest import MakeAdapter


@pytest.mark.parametrize("architecture", PACKED_ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_equals_the_adapter(architecture: str, dtype: torch.dtype, make_adapter: MakeAdapter) -> None:
    adapter = make_adapter(architecture)
    fused = FusedAdapter(adapter, dtype)
    cases = parity_cases(adapter, [EngineBucket(batch=2, vlm_tokens=24, dino_tokens=16)], static=True)
    assert measure_parity(adapter, cases, lambda x: fused(*x), dtype=dtype).holds


def test_moving_it_leaves_the_adapter_where_it_is(make_adapter: MakeAdapter) -> None:
    adapter = make_adapter("query")
    FusedAdapter(adapter, torch.bfloat16).to(torch.float64)
    assert {tensor.dtype for tensor in adapter.state_dict().values()} == {torch.float32}


@pytest.mark.filterwarnings("ignore")
def test_the_kernels_are_nodes_of_the_graph_that_is_compiled(make_adapter: MakeAdapter) -> None:
    """Traced with tensors that only claim to lie on a GPU, as ahead-of-time compilation does there."""
    pytest.importorskip("triton")
    adapter = make_adapter("query")
    fused = FusedAdapter(adapter, torch.bfloat16)
    bucket = EngineBucket(batch=1, vlm_tokens=24, dino_tokens=16)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in fused.modules():
            for tensors in (module._buffers, module._parameters):
                for name, tensor in tensors.items():
                    if tensor is not None:
                        fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
                        tensors[name] = torch.nn.Parameter(fake, requires_grad=False)
        inputs = tuple(
            torch.empty(each.shape, dtype=each.dtype, device="cuda")
            for each in example_inputs(adapter, bucket, torch.bfloat16)
        )
        program = torch.export.export(fused, inputs)
    targets = [str(node.target) for node in program.graph.nodes]
    kernels = {
        name: targets.count(f"foresight.{name}.default") for name in ("encode_context", "product", "attend")
    }
    # Two layers, of which the first has no self-attention left to compute.
    assert kernels == {"encode_context": 1, "product": 1, "attend": 3}
