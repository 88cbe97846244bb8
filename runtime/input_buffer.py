"""A buffer for one encoder's features, and the way into it."""

from __future__ import annotations

import torch
from torch import Tensor

from foresight.runtime.device_copy import Copy

__all__ = ["InputBuffer"]


class InputBuffer:
    """`buffer` [batch, tokens, dim], zeros at first, which kernels read at `address`."""

    def __init__(
        self, batch: int, tokens: int, dim: int, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.buffer = torch.zeros(batch, tokens, dim, device=device, dtype=dtype)
        self.address = self.buffer.data_ptr()
        # Features of fewer bytes are not one range here: several clips with rows left over, or no tokens.
        self._least = self.buffer.nbytes if batch > 1 else 1

    def load(self, features: Tensor, source: int, copy: Copy | None, stream: int) -> None:
        """Copy `features`, which lie at `source`, to the first rows of the buffer."""
        if source == self.address:
            return
        # The stream's order keeps features that were made on it until they are copied, even if freed at once;
        # one made on another stream is its caller's to keep, as with any work. PyTorch refuses what overlaps.
        if copy is not None and self._least <= (size := features.nbytes) <= abs(source - self.address):
            copy(self.address, source, size, stream)
        else:
            self.buffer[:, : features.shape[1]].copy_(features, non_blocking=True)
