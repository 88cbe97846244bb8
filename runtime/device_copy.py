"""Copies within one GPU at little cost to the host."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch

from foresight.kernels.cuda_driver import check_driver, cuda_driver, current_context

__all__ = ["Copy", "DeviceCopy"]

Copy = Callable[[int, int, int, int], None]


class DeviceCopy:
    """The driver's own asynchronous copy within `device`, which skips what PyTorch does around it.

    Made by a thread that has put work on the device, since that binds the device's context to the thread.
    """

    def __init__(self, device: torch.device) -> None:
        self._copy = cuda_driver().cuMemcpyDtoDAsync_v2
        self._copy.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
        with torch.cuda.device(device):
            self._context = current_context()

    def here(self) -> Copy | None:
        """`copy` where this thread's calls of the driver go to the device, else None.

        They do not while another device is current, nor in a thread that has not used CUDA yet.
        """
        return self.copy if current_context() == self._context else None

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        """Put a copy of `size` bytes between two addresses that are `size` or more apart on a stream.

        Raises RuntimeError with the driver's name for what went wrong.
        """
        status = self._copy(target, source, size, stream)
        if status:
            check_driver(status, f"cuMemcpyDtoDAsync of {size} bytes")
