"""The body under the tools that will compile it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from foresight.adapters import Adapter

MakeAdapter = Callable[[str], Adapter]


def test_context_is_dino_then_vlm(small_adapter: MakeAdapter, features: Any) -> None:
    body = small_adapter("query").get_submodule("body")
    context, mask = body.context(features.vlm, features.dino, vlm_lengths=torch.tensor([24, 3]))
    torch.testing.assert_close(context[:, :16], body.context.dino(features.dino))
    torch.testing.assert_close(context[0, 16:], body.context.vlm(features.vlm)[0])
    assert mask.sum(1).tolist() == [40, 19]
    assert mask[1, :19].all()


def test_no_mask_is_made_without_lengths(small_adapter: MakeAdapter, features: Any) -> None:
    _, mask = small_adapter("query").get_submodule("body").context(features.vlm, features.dino)
    assert mask is None


def test_export_keeps_the_number_of_vlm_tokens_open(small_adapter: MakeAdapter, features: Any) -> None:
    adapter = small_adapter("query").eval()
    lengths = torch.tensor([24, 9])
    shapes = {
        "vlm_hidden_states": {1: torch.export.Dim("tokens", min=2, max=64)},
        "dino_hidden_states": None,
        "vlm_lengths": None,
    }
    program = torch.export.export(
        adapter, (features.vlm, features.dino), {"vlm_lengths": lengths}, dynamic_shapes=shapes
    )
    longer = torch.randn(2, 31, 24)
    exported = program.module()(longer, features.dino, vlm_lengths=torch.tensor([31, 2]))
    expected = adapter(longer, features.dino, vlm_lengths=torch.tensor([31, 2]))
    torch.testing.assert_close(exported, expected, rtol=0, atol=1e-5)
