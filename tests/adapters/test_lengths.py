"""True lengths: which tokens count."""

from __future__ import annotations

import pytest
import torch

from foresight.adapters.lengths import masked_mean, true_tokens


def test_mask_is_true_up_to_each_length() -> None:
    mask = true_tokens(torch.tensor([0, 2, 3]), torch.zeros(3, 3, 1))
    assert mask.tolist() == [[False] * 3, [True, True, False], [True] * 3]


def test_tokens_past_the_grid_never_count() -> None:
    with pytest.raises(ValueError, match="vlm_lengths 5: must be from 0 to 4"):
        true_tokens(torch.tensor([5]), torch.zeros(1, 6, 1), grid=(1, 2, 2))


def test_lengths_that_cannot_be_read_count_at_most_the_tokens_of_the_grid(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    mask = true_tokens(torch.tensor([5, -1]), torch.zeros(2, 6, 1), grid=(1, 2, 2))
    assert mask.sum(1).tolist() == [4, 0]


def test_mean_is_of_the_true_tokens() -> None:
    hidden_states = torch.tensor([[[1.0], [3.0], [float("nan")]], [[5.0], [float("inf")], [9.0]]])
    mean = masked_mean(hidden_states, torch.tensor([2, 1]))
    torch.testing.assert_close(mean, torch.tensor([[2.0], [5.0]]))


def test_mean_of_many_large_halves_does_not_overflow() -> None:
    hidden_states = torch.full((1, 2000, 2), 100.0, dtype=torch.float16)
    mean = masked_mean(hidden_states, torch.tensor([1999]))
    torch.testing.assert_close(mean, torch.full((1, 2), 100.0, dtype=torch.float16))
