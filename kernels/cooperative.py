"""A kernel of CUDA C++ on the device, launched so that all of its blocks run at once, in clusters."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, ClassVar

from foresight.kernels.cuda_driver import check_driver, cuda_driver, current_context
from foresight.kernels.nvrtc import compile_cuda

__all__ = ["CooperativeKernel", "resident_blocks"]

_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8
_COOPERATIVE, _CLUSTER_DIMENSION = 2, 4


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


def _configured(blocks: int, threads: int, shared_bytes: int, cluster: int) -> _Launch:
    attributes = (_Attribute * 2)()
    attributes[0].id, attributes[0].value[0] = _COOPERATIVE, 1
    attributes[1].id, attributes[1].value[0:3] = _CLUSTER_DIMENSION, (cluster, 1, 1)
    return _Launch(blocks, 1, 1, threads, 1, 1, shared_bytes, None, attributes, len(attributes))


class CooperativeKernel:
    """The kernel `name` of `code` in this thread's context, in `blocks` blocks of `threads`, `cluster` by `cluster`."""

    def __init__(
        self, code: bytes, name: str, *, blocks: int, threads: int, shared_bytes: int, cluster: int
    ) -> None:
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
        self._sizes = blocks, threads, shared_bytes, cluster

    def resident_clusters(self) -> int:
        """How many clusters the device holds at once."""
        count, config = ctypes.c_int(), _configured(*self._sizes)
        status = self._driver.cuOccupancyMaxActiveClusters(
            ctypes.byref(count), self._function, ctypes.byref(config)
        )
        check_driver(status, "counting clusters")
        return count.value

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

        # `kept` holds the structure, whose address alone the driver is told.
        def put(stream: int, kept: Any = parameters) -> None:  # noqa: ARG001
            config.stream = stream
            # Another device is current, or none yet in this thread.
            elsewhere = current_context() != self._context
            if elsewhere:
                check_driver(self._driver.cuCtxPushCurrent_v2(ctypes.c_void_p(self._context)), "its context")
            status = launch(*given)
            if elsewhere:
                self._driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
            if status:
                check_driver(status, "a cooperative launch")

        return put


def resident_blocks(capability: tuple[int, int], *, threads: int, shared_bytes: int, cluster: int) -> int:
    """In how many blocks a cooperative kernel can be launched on the current device, which is of this capability.

    A GPU's multiprocessors come in groups of different sizes, which clusters of blocks do not fill.
    Raises as `compile_cuda`, and RuntimeError where the driver refuses.
    """
    kernel = CooperativeKernel(
        compile_cuda('extern "C" __global__ void empty() {}', {}, capability),
        "empty",
        blocks=cluster,
        threads=threads,
        shared_bytes=shared_bytes,
        cluster=cluster,
    )
    return kernel.resident_clusters() * cluster
