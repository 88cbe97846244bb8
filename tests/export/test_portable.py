"""The traceable form computes what the adapters do, for grids and lengths that it was not made with."""

from __future__ import annotations

import math

import pytest
import torch

from foresight.adapters import Grid, engine_inputs
from foresight.export.attention import plain_attention, replace_attention
from foresight.export.parity import measure_parity, parity_cases
from foresight.export.portable import PortableAdapter

from .conftest import BUCKET, SIZES, MakeAdapter


@pytest.mark.parametrize("architecture", SIZES)
@pytest.mark.parametrize("plain", [False, True])
def test_equals_the_adapter(architecture: str, plain: bool, make_adapter: MakeAdapter) -> None:
    adapter = make_adapter(architecture)
    portable = PortableAdapter(adapter)
    if plain:
        replace_attention(portable, self_attend=plain_attention, cross_attend=plain_attention)
    parity = measure_parity(adapter, parity_cases(adapter, [BUCKET], static=False), lambda x: portable(*x))
    assert parity.max_error < 2e-6


@pytest.mark.parametrize("grid", [(1, 1, 1), (2, 3, 5), (4, 2, 2), (7, 1, 1), None])
@pytest.mark.parametrize("architecture", ["query", "linear"])
def test_takes_any_grid(architecture: str, grid: Grid | None, make_adapter: MakeAdapter) -> None:
    adapter = make_adapter(architecture)
    if grid is None and architecture == "linear":
        pytest.skip("needs grids")
    tokens = 9 if grid is None else math.prod(grid)
    vlm, dino = torch.randn(2, tokens, 24), torch.randn(2, 16, 16)
    lengths = torch.tensor([tokens, tokens // 2])
    dino_grid = (1, 4, 4)
    portable = PortableAdapter(adapter)
    with torch.inference_mode():
        expected = adapter(vlm, dino, vlm_grid=grid, dino_grid=dino_grid, vlm_lengths=lengths)
        output = portable(*engine_inputs(vlm, dino, grid, dino_grid, lengths))
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=2e-6)


def test_the_adapter_stays_as_it_was(make_adapter: MakeAdapter) -> None:
    adapter = make_adapter("query")
    before = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
    PortableAdapter(adapter)
    after = adapter.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
