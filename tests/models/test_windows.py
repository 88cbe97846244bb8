from __future__ import annotations

import pytest
import torch

from foresight.models.windows import WindowLayout, build_window_layout


def _layout(grid_thw: tuple[int, int, int]) -> WindowLayout:
    return build_window_layout(
        grid_thw, merge=2, window=4, head_dim=16, theta=10000.0, device=torch.device("cpu")
    )


@pytest.mark.parametrize("grid_thw", [(1, 16, 16), (5, 8, 12), (2, 10, 14), (1, 2, 2)])
def test_orders_are_inverse_permutations(grid_thw: tuple[int, int, int]) -> None:
    layout = _layout(grid_thw)
    t, h, w = grid_thw
    count = t * h * w
    assert sorted(layout.window_order.tolist()) == list(range(count))
    # Number the patches naturally, put them in the processor's order, then there and back.
    natural = torch.arange(count).view(t, h // 2, 2, w // 2, 2).transpose(2, 3).flatten()
    assert natural[layout.window_order][layout.natural_patches].tolist() == list(range(count))
    tokens = torch.arange(count // 4)
    in_windows = layout.window_order.view(-1, 4)[:, 0] // 4
    assert in_windows[layout.natural_tokens].tolist() == tokens.tolist()


def test_windows_of_one_shape_stand_together() -> None:
    layout = _layout((2, 10, 14))  # 5x7 merged tokens: windows 4x4, 4x3, 1x4, 1x3
    assert [group.length for group in layout.groups] == [64, 48, 16, 12]
    assert [group.start for group in layout.groups] == [0, 64, 112, 128]
    assert layout.groups[-1].stop == 140


def test_even_grids_have_one_group() -> None:
    (group,) = _layout((3, 16, 24)).groups
    assert (group.start, group.stop, group.length) == (0, 384, 64)


@pytest.mark.parametrize("grid_thw", [(1, 3, 4), (0, 4, 4), (1, 4, 7)])
def test_refuses_grids_of_partial_blocks(grid_thw: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="multiples of 2"):
        _layout(grid_thw)
