"""Parity finds what it is there for."""

from __future__ import annotations

import torch

from foresight.export.parity import measure_parity, parity_cases
from foresight.export.portable import PortableAdapter

from .conftest import BUCKET, MakeAdapter


def test_an_error_above_the_tolerance_is_found(make_adapter: MakeAdapter) -> None:
    adapter = make_adapter("query")
    portable, cases = PortableAdapter(adapter), parity_cases(adapter, [BUCKET], static=True)
    parity = measure_parity(adapter, cases, lambda x: portable(*x) + 2e-3)
    assert not parity.holds
    assert 1e-3 < parity.max_error < 3e-3


def test_padding_that_reaches_the_output_is_found(make_adapter: MakeAdapter) -> None:
    adapter = make_adapter("query")
    portable, cases = PortableAdapter(adapter), parity_cases(adapter, [BUCKET], static=True)

    def without_lengths(inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        full = torch.full_like(inputs[4], inputs[0].shape[1])
        return torch.as_tensor(portable(*inputs[:4], full))

    assert not measure_parity(adapter, cases, without_lengths).holds


def test_an_output_of_another_shape_is_found(make_adapter: MakeAdapter) -> None:
    adapter = make_adapter("query")
    portable, cases = PortableAdapter(adapter), parity_cases(adapter, [BUCKET], static=True)
    assert not measure_parity(adapter, cases, lambda x: portable(*x)[:, :-1]).holds


def test_bfloat16_is_held_to_twice_its_own_rounding(make_adapter: MakeAdapter) -> None:
    adapter = make_adapter("query")
    portable = PortableAdapter(adapter).to(torch.bfloat16)
    cases = parity_cases(adapter, [BUCKET], static=True)
    assert measure_parity(adapter, cases, lambda x: portable(*x), dtype=torch.bfloat16).holds
    assert not measure_parity(adapter, cases, lambda x: portable(*x) * 1.1, dtype=torch.bfloat16).holds
