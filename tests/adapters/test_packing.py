"""The packed form computes what the adapter does, and leaves the adapter alone."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from foresight.adapters import Adapter, AdapterBody, Grid
from foresight.adapters.packing import (
    PACKED_ARCHITECTURES,
    PackedAdapter,
    first_queries,
    pack_adapter,
    positions_table,
)

from .conftest import DINO_GRID, SIZES, VLM_GRID, Features
from .trained import as_if_trained

CPU = torch.device("cpu")
Grids = tuple[Grid | None, Grid | None]


@pytest.fixture(params=PACKED_ARCHITECTURES)
def adapter(request: pytest.FixtureRequest, small_adapter: Callable[[str], Adapter]) -> Adapter:
    return as_if_trained(small_adapter(request.param)).requires_grad_(False)


def body_of(adapter: Adapter) -> AdapterBody:
    body = adapter.get_submodule("body")
    assert isinstance(body, AdapterBody)
    return body


def run(packed: PackedAdapter, adapter: Adapter, features: Features, grids: Grids, lengths: Tensor) -> Tensor:
    tokens = features.dino.shape[1], features.vlm.shape[1]
    table = positions_table(body_of(adapter), packed, tokens, grids)
    output: Tensor = packed(features.vlm, features.dino, table, lengths)
    return output


@pytest.mark.parametrize("grids", [(None, None), (DINO_GRID, VLM_GRID)], ids=["no grids", "grids"])
def test_equals_the_adapter(grids: Grids, adapter: Adapter, features: Features) -> None:
    lengths = torch.tensor([24, 7], dtype=torch.int32)
    expected = adapter(
        features.vlm, features.dino, vlm_grid=grids[1], dino_grid=grids[0], vlm_lengths=lengths
    )
    output = run(pack_adapter(adapter, CPU, torch.float32), adapter, features, grids, lengths)
    torch.testing.assert_close(output, expected, rtol=0, atol=2e-5)


def test_an_adapter_in_bfloat16_is_folded_in_fp32(adapter: Adapter, features: Features) -> None:
    adapter.bfloat16()
    lengths = torch.tensor([24, 7], dtype=torch.int32)
    packed = pack_adapter(adapter, CPU, torch.float32)
    exact = copy.deepcopy(adapter).float()
    expected = exact(features.vlm, features.dino, vlm_lengths=lengths)
    output = run(packed, adapter, features, (None, None), lengths)
    torch.testing.assert_close(output, expected, rtol=0, atol=2e-5)


def test_other_architectures_have_no_packed_form(small_adapter: Callable[[str], Adapter]) -> None:
    for architecture in set(SIZES) - set(PACKED_ARCHITECTURES):
        with pytest.raises(
            ValueError, match=f"architecture '{architecture}': only query and cross_attention"
        ):
            pack_adapter(small_adapter(architecture), CPU, torch.float32)


def test_the_first_queries_are_what_the_first_layer_makes_of_the_learned_ones(adapter: Adapter) -> None:
    body = body_of(adapter)
    first = body.get_submodule("layers.0")
    nn.init.zeros_(first.get_parameter("self_attention.out.weight"))
    nn.init.zeros_(first.get_parameter("cross_norm.weight"))
    hidden_states, query = first_queries(body)
    torch.testing.assert_close(hidden_states, body.queries + first.get_parameter("self_attention.out.bias"))
    # Every row of a norm without scale is its shift.
    assert (query - query[0]).abs().max() < 1e-6


def test_packing_leaves_the_adapter_alone(adapter: Adapter) -> None:
    before = copy.deepcopy(adapter.state_dict())
    packed = pack_adapter(adapter, CPU, torch.float32)
    packed.change_weights(torch.zeros_like)
    packed.to(torch.float64)
    after = adapter.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}


def test_changed_weights_are_those_of_the_products_alone(adapter: Adapter) -> None:
    packed = pack_adapter(adapter, CPU, torch.float32)
    before = dict(packed.named_buffers())
    packed.change_weights(lambda weight: weight + 1)
    changed = {name for name, tensor in packed.named_buffers() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if name.endswith("weight")}


def test_a_grid_beyond_the_learned_positions_is_refused(adapter: Adapter) -> None:
    packed = pack_adapter(adapter, CPU, torch.float32)
    with pytest.raises(ValueError, match=r"grid \(9, 1, 1\): every size must be from 1"):
        positions_table(body_of(adapter), packed, (16, 9), (None, (9, 1, 1)))
