"""The CUDA driver itself: its library, and whether this process may touch CUDA at all."""

from __future__ import annotations

import ctypes
from functools import cache

__all__ = ["check_driver", "cuda_driver", "cuda_driver_refusal", "current_context"]


@cache
def cuda_driver() -> ctypes.CDLL:
    """The driver's library; raises OSError where none is installed."""
    return ctypes.CDLL("libcuda.so.1")


@cache
def cuda_driver_refusal() -> str | None:
    """Why the CUDA driver cannot be used, in half a sentence; None if it can.

    TensorRT's objects crash the process where the driver is missing, so this is asked before any is made.
    """
    try:
        driver = cuda_driver()
    except OSError:
        return "no CUDA driver is installed"
    status = driver.cuInit(0)
    return f"the CUDA driver does not start (cuInit returned {status})" if status else None


def current_context() -> int | None:
    """The context that this thread's calls of the driver go to; None in a thread that has not used CUDA."""
    context = ctypes.c_void_p()
    cuda_driver().cuCtxGetCurrent(ctypes.byref(context))
    return context.value


def check_driver(status: int, what: str) -> None:
    """Raise RuntimeError, with the driver's name for `status`, if it says that `what` went wrong."""
    if status:
        name = ctypes.c_char_p()
        cuda_driver().cuGetErrorName(status, ctypes.byref(name))
        given = name.value.decode() if name.value else f"CUresult {status}"
        raise RuntimeError(f"{what}: the CUDA driver returned {given}")
