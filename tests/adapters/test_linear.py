"""The probe is linear in the features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from foresight.adapters import Adapter


def test_output_is_affine_in_the_features(small_adapter: Callable[[str], Adapter], features: Any) -> None:
    adapter, grids = small_adapter("linear"), features.grids()
    zero = adapter(torch.zeros_like(features.vlm), torch.zeros_like(features.dino), **grids)
    one = adapter(features.vlm, features.dino, **grids) - zero
    three = adapter(3 * features.vlm, 3 * features.dino, **grids) - zero
    torch.testing.assert_close(three, 3 * one, rtol=1e-4, atol=1e-5)


def test_a_corner_of_the_latents_sees_only_its_corner_of_the_picture(
    small_adapter: Callable[[str], Adapter], features: Any
) -> None:
    adapter, grids = small_adapter("linear"), features.grids()
    before = adapter(features.vlm, features.dino, **grids)
    moved = features.dino.clone()
    moved[:, -1] += 1.0
    change = (adapter(features.vlm, moved, **grids) - before).abs().amax((0, 1, 2))
    assert change[0, 0] == 0
    assert change[-1, -1] > 0
