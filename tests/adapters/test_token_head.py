"""The factorised head gives every token a map of its own."""

from __future__ import annotations

import torch
from torch import nn

from foresight.adapters.token_head import TokenHead


def test_a_linear_head_is_the_factorised_projection() -> None:
    head = TokenHead(6, 5, 4, 3, nn.Identity())
    vector = torch.randn(2, 6)
    output = head(vector)
    assert output.shape == (2, 5, 3)
    rows = slice(3 * 4, 4 * 4)
    own = vector @ head.tokens.weight[rows].T + head.tokens.bias[rows]
    torch.testing.assert_close(output[:, 3], own @ head.shared.weight.T + head.shared.bias)
