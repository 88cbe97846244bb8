"""What a compiled member must never see, and how a bucket is filled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from foresight.adapters import EngineBucket, engine_inputs
from foresight.runtime.backend_compiled import CompiledBackend
from foresight.runtime.backend_inputs import check_inputs, find_bucket

from .small_adapter import small_config

CONFIG = small_config(num_layers=1)
SMALL = EngineBucket(batch=1, vlm_tokens=8, dino_tokens=4)
LARGE = EngineBucket(batch=2, vlm_tokens=16, dino_tokens=4)
VLM, DINO = torch.randn(1, 6, 24), torch.randn(1, 4, 16)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"vlm_hidden_states": torch.randn(1, 6, 25)}, r"must be \[batch, tokens, 24\]"),
        ({"dino_hidden_states": torch.randn(2, 4, 16)}, "must have the same"),
        ({"vlm_grid": (1, 2, 4)}, "has 8 tokens"),
        ({"vlm_grid": (1, 1, 6), "dino_grid": (1, 1, 5)}, "has 5 tokens"),
        ({"vlm_hidden_states": torch.randn(1, 65, 24), "vlm_grid": (1, 1, 65)}, "max_grid"),
        ({"vlm_lengths": torch.tensor([7])}, "from 0 to 6"),
        ({"vlm_lengths": torch.tensor([-1])}, "from 0 to 6"),
        ({"vlm_lengths": torch.tensor([1.0])}, "whole numbers"),
        ({"vlm_lengths": torch.tensor([1, 2])}, "one for each row"),
    ],
)
def test_what_the_adapter_refuses_is_refused(options: dict[str, Any], expected: str) -> None:
    given: dict[str, Any] = {"vlm_hidden_states": VLM, "dino_hidden_states": DINO}
    given |= {"vlm_grid": None, "dino_grid": None, "vlm_lengths": None} | options
    with pytest.raises(ValueError, match=expected):
        check_inputs(CONFIG, **given)


def test_the_smallest_bucket_that_holds_the_clip_is_found() -> None:
    def bucket(batch: int, tokens: int) -> EngineBucket:
        features = torch.zeros(batch, tokens, 24), torch.zeros(batch, 4, 16)
        return find_bucket([LARGE, SMALL], engine_inputs(*features, None, None, None))

    assert bucket(1, 3) == bucket(1, 8) == SMALL
    assert bucket(1, 9) == bucket(2, 2) == bucket(2, 16) == LARGE
    with pytest.raises(ValueError, match=r"features of 1x17x4.*made for 2x16x4, 1x8x4"):
        bucket(1, 17)
    with pytest.raises(ValueError, match="features of 3x4x4"):
        bucket(3, 4)


def test_a_clip_is_padded_to_its_bucket_and_the_padding_does_not_count() -> None:
    seen: list[tuple[Tensor, ...]] = []

    def run(inputs: tuple[Tensor, ...]) -> Tensor:
        seen.append(inputs)
        return inputs[0].sum((1, 2))[:, None]

    backend = CompiledBackend(
        "aoti",
        CONFIG,
        {LARGE: run},
        member="x.pt2",
        device=torch.device("cpu"),
        dtype=torch.bfloat16,
        example=LARGE,
    )
    backend.prepare()
    assert seen.pop()[0].shape == (2, 16, 24)
    output = backend(VLM, DINO, vlm_grid=(1, 2, 3))
    vlm, dino, grid, _, lengths = seen.pop()
    assert (vlm.shape, dino.shape, vlm.dtype) == ((2, 16, 24), (2, 4, 16), torch.bfloat16)
    assert grid.tolist() == [1, 2, 3]
    assert lengths.tolist() == [6, 0]
    assert not vlm[0, 6:].any()
    assert output.shape == (1, 1)
    assert output.dtype == torch.float32
    for options in ({"vlm_grid": (1, 3, 2)}, {"vlm_lengths": torch.tensor([2])}, {"vlm_grid": (1, 2, 3)}):
        backend(VLM, DINO, **options)
    assert [each[2].tolist() for each in seen] == [[1, 3, 2], [0, 0, 0], [1, 2, 3]]
    assert [each[4].tolist() for each in seen] == [[6, 0], [2, 0], [6, 0]]
