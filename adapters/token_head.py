"""From one vector for a whole clip to the tokens of its conditioning."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["TokenHead"]


class TokenHead(nn.Module):
    """A projection of its own for every token into a narrow width, then one projection that all tokens share.

    A plain Linear from a vector to 77 tokens of 4096 channels has hundreds of thousands of rows: 40M
    parameters from 128 inputs, billions from a wide layer. Its factorisation keeps the tokens apart for a
    fraction of that.
    """

    def __init__(self, in_dim: int, num_tokens: int, width: int, out_dim: int, activation: nn.Module) -> None:
        super().__init__()
        self.num_tokens, self.width = num_tokens, width
        self.tokens = nn.Linear(in_dim, num_tokens * width)
        self.activation = activation
        self.shared = nn.Linear(width, out_dim)

    def forward(self, vector: Tensor) -> Tensor:
        """Map [B, in_dim] to [B, num_tokens, out_dim]."""
        tokens = self.activation(self.tokens(vector)).view(-1, self.num_tokens, self.width)
        output: Tensor = self.shared(tokens)
        return output
