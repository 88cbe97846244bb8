"""A kernel of CUDA C++ on the device, launched so that all of its blocks run at once."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from foresight.kernels.cuda_driver import check_driver, cuda_driver, current_context

__all__ = ["CooperativeKernel"]

_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8


class CooperativeKernel:
    """The kernel `name` of `code` in the context of this thread, in `blocks` blocks of `threads`."""

    def __init__(self, code: bytes, name: str, *, blocks: int, threads: int, shared_bytes: int) -> None:
        self._driver = driver = cuda_driver()
        self._context = current_context()
        self._module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        check_driver(driver.cuModuleLoadData(ctypes.byref(self._module), code), f"loading {name}")
        check_driver(
            driver.cuModuleGetFunction(ctypes.byref(self._function), self._module, name.encode()),
            f"finding {name}",
        )
        check_driver(
            driver.cuFuncSetAttribute(self._function, _MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes),
            f"{shared_bytes} bytes of shared memory",
        )
        # All but the stream and the arguments stays the same, and is converted once.
        self._sizes = [ctypes.c_uint(n) for n in (blocks, 1, 1, threads, 1, 1, shared_bytes)]

    def launch(self, parameters: Any, stream: int) -> None:
        """Put a launch on `stream`; `parameters` is a ctypes structure, the kernel's only argument, copied here.

        Raises RuntimeError with the driver's name for what went wrong.
        """
        self.bind(parameters)(stream)

    def bind(self, parameters: Any) -> Callable[[int], None]:
        """`launch` with a structure that stays where it is: whoever changes it changes later launches."""
        arguments = (ctypes.c_void_p * 1)(ctypes.addressof(parameters))
        launch, given = self._driver.cuLaunchCooperativeKernel, (self._function, *self._sizes)

        # `kept` holds the structure, whose address alone the driver is told.
        def put(stream: int, kept: Any = parameters) -> None:  # noqa: ARG001
            # Another device is current, or none yet in this thread.
            elsewhere = current_context() != self._context
            if elsewhere:
                check_driver(self._driver.cuCtxPushCurrent_v2(ctypes.c_void_p(self._context)), "its context")
            status = launch(*given, ctypes.c_void_p(stream), arguments)
            if elsewhere:
                self._driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
            if status:
                check_driver(status, "a cooperative launch")

        return put
