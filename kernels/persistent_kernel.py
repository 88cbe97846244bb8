"""The persistent kernel on a device: compiled, loaded and launched."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from foresight.kernels.cooperative import CooperativeKernel
from foresight.kernels.nvrtc import compile_cuda
from foresight.kernels.persistent import (
    Buffers,
    PersistentParameters,
    Weights,
    persistent_source,
)
from foresight.kernels.persistent_shape import PersistentShape

__all__ = ["SHARED_MEMORY", "PersistentKernel", "persistent_blocks"]

THREADS = 256
# What a block may have where the compute capability is 9.0, which the kernel asks for.
SHARED_MEMORY = 232_448


class PersistentKernel:
    """An adapter's forward as one launch on `device`; see `foresight.kernels.persistent`.

    Raises ValueError for a shape that the kernel refuses, RuntimeError where it does not compile or load.
    """

    def __init__(self, shape: PersistentShape, weights: Weights, device: torch.device) -> None:
        refusal = shape.refusal(SHARED_MEMORY)
        if refusal is not None:
            raise ValueError(refusal)
        self.shape = shape
        self.parameters = PersistentParameters(shape, weights)
        with torch.cuda.device(device):
            # The driver works in the context that is current, which the first work on the device makes.
            torch.cuda.synchronize()
            self.function = CooperativeKernel(
                _code(shape, torch.cuda.get_device_capability(device)),
                "adapter",
                blocks=shape.blocks,
                threads=THREADS,
                shared_bytes=shape.shared_bytes,
            )

    def launch(
        self, vlm: Tensor, dino: Tensor, table: Tensor, lengths: Tensor, buffers: Buffers, stream: int
    ) -> Tensor:
        """Put one launch on `stream` and return `buffers.output`; arguments as in `PersistentParameters.fill`."""
        self.function.launch(self.parameters.fill(vlm, dino, table, lengths, buffers), stream)
        return buffers.output


def persistent_blocks(device: torch.device) -> int:
    """The blocks that the kernel has on `device`: one a multiprocessor."""
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def _code(shape: PersistentShape, capability: tuple[int, int]) -> bytes:
    return compile_cuda(persistent_source(shape), shape.defines(), capability)
