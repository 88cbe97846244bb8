"""The fused form on the kernels' references."""

from __future__ import annotations

import pytest
import torch

from foresight.adapters import EngineBucket
from foresight.export.fused import FusedAdapter, can_fuse
from foresight.export.parity import measure_parity, parity_cases

from .conftest import SIZES, MakeAdapter


@pytest.mark.parametrize("architecture", ["query", "cross_attention"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_equals_the_adapter(architecture: str, dtype: torch.dtype, make_adapter: MakeAdapter) -> None:
    adapter = make_adapter(architecture)
    fused = FusedAdapter(adapter, dtype)
    cases = parity_cases(adapter, [EngineBucket(batch=2, vlm_tokens=24, dino_tokens=16)], static=True)
    assert measure_parity(adapter, cases, lambda x: fused(*x), dtype=dtype).holds


def test_other_architectures_have_no_fused_form(make_adapter: MakeAdapter) -> None:
    for architecture in SIZES:
        adapter = make_adapter(architecture)
        if not can_fuse(adapter.config):
            with pytest.raises(ValueError, match="has no fused form"):
                FusedAdapter(adapter, torch.float32)
    assert [name for name in SIZES if can_fuse(make_adapter(name).config)] == ["query", "cross_attention"]
