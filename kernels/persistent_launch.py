"""A launch of the persistent kernel that is repeated on the same buffers, at little cost to the host."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from foresight.kernels.persistent import Buffers
from foresight.kernels.persistent_kernel import PersistentKernel

__all__ = ["PersistentLaunch"]


class PersistentLaunch:
    """`kernel.launch` with `table` and `buffers`; only what a call brings along is named anew.

    Features and lengths are as in `PersistentParameters.fill`; those given here are where launches begin to read.
    """

    def __init__(
        self,
        kernel: PersistentKernel,
        vlm: Tensor,
        dino: Tensor,
        table: Tensor,
        lengths: Tensor,
        buffers: Buffers,
    ) -> None:
        filled = kernel.parameters.fill(vlm, dino, table, lengths, buffers)
        # A copy, because the kernel fills its own for whatever is launched next.
        self._structure: Any = type(filled).from_buffer_copy(filled)
        # The structure holds nothing but their addresses.
        self._kept = kernel, table, buffers
        self._put = kernel.function.bind(self._structure)

    def __call__(self, vlm: Tensor, dino: Tensor, lengths: Tensor, stream: int) -> None:
        """Put one launch on `stream`, to which `vlm`, `dino` and `lengths` belong until it is done."""
        structure = self._structure
        structure.vlm, structure.dino = vlm.data_ptr(), dino.data_ptr()
        structure.lengths = lengths.data_ptr()
        self._put(stream)
