"""A kernel of CUDA C++ on the device, launched so that all of its blocks run at once."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, ClassVar

from foresight.kernels.cuda_driver import check_driver, cuda_driver, current_context

__all__ = ["CooperativeKernel"]

_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8
_COOPERATIVE = 2


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute: its value is a union of 64 bytes."""

    _fields_: ClassVar[Any] = [
        ("id", ctypes.c_int),
        ("padding", ctypes.c_int),
        ("value", ctypes.c_uint * 16),
    ]


class _Launch(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_: ClassVar[Any] = [
        *((name, ctypes.c_uint) for name in ("blocks", "grid_y", "grid_z", "threads", "block_y", "block_z")),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("count", ctypes.c_uint),
    ]


def _configured(blocks: int, threads: int, shared_bytes: int) -> _Launch:
    attributes = (_Attribute * 1)()
    attributes[0].id, attributes[0].value[0] = _COOPERATIVE, 1
    return _Launch(blocks, 1, 1, threads, 1, 1, shared_bytes, None, attributes, len(attributes))


class CooperativeKernel:
    """The kernel `name` of `code` in this thread's context, in `blocks` blocks of `threads`."""

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
        self._sizes = blocks, threads, shared_bytes

    def launch(self, parameters: Any, stream: int) -> None:
        """Put a launch on `stream`; `parameters` is a ctypes structure, the kernel's only argument, copied here.

        Raises RuntimeError with the driver's name for what went wrong.
        """
        self.bind(parameters)(stream)

    def bind(self, parameters: Any) -> Callable[[int], None]:
        """`launch` with a structure that stays where it is: whoever changes it changes later launches.

        What this returns is called by one thread at a time.
        """
        arguments = (ctypes.c_void_p * 1)(ctypes.addressof(parameters))
        # All but the stream stays the same.
        config = _configured(*self._sizes)
        launch, given = self._driver.cuLaunchKernelEx, (ctypes.byref(config), self._function, arguments, None)
        # `current_context` written out, because its holder and its look-ups cost the host time in every call.
        find, here = self._driver.cuCtxGetCurrent, ctypes.c_void_p()
        found = ctypes.byref(here)

        # `kept` holds the structure, whose address alone the driver is told.
        def put(stream: int, kept: Any = parameters) -> None:  # noqa: ARG001
            config.stream = stream
            find(found)
            # Another device is current, or none yet in this thread.
            elsewhere = here.value != self._context
            if elsewhere:
                check_driver(self._driver.cuCtxPushCurrent_v2(ctypes.c_void_p(self._context)), "its context")
            status = launch(*given)
            if elsewhere:
                self._driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
            if status:
                check_driver(status, "a cooperative launch")

        return put
