"""What is asked of the driver for a cooperative launch, with a stand-in for its library."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from foresight.kernels import cooperative, cuda_driver
from foresight.kernels.cooperative import CooperativeKernel


class Numbers(ctypes.Structure):
    _fields_ = (("first", ctypes.c_int), ("second", ctypes.c_int))


class FakeDriver:
    """Answers with `status`, and keeps launches: their sizes, stream, numbers and context."""

    def __init__(self) -> None:
        self.contexts: list[int | None] = [0x5000]
        self.status = 0
        self.launches: list[tuple[list[int], int, tuple[int, int], int | None]] = []

    def cuCtxGetCurrent(self, reference: Any) -> int:  # noqa: N802
        reference._obj.value = self.contexts[-1]
        return 0

    def cuCtxPushCurrent_v2(self, context: Any) -> int:  # noqa: N802
        self.contexts.append(context.value)
        return 0

    def cuCtxPopCurrent_v2(self, _: Any) -> int:  # noqa: N802
        self.contexts.pop()
        return 0

    def cuModuleLoadData(self, *_: Any) -> int:  # noqa: N802
        return 0

    cuModuleGetFunction = cuFuncSetAttribute = cuModuleLoadData  # noqa: N815

    def cuLaunchKernelEx(self, configured: Any, _: Any, pointers: Any, extra: Any) -> int:  # noqa: N802
        assert extra is None
        launch = configured._obj
        attributes = [(each.id, list(each.value[:3])) for each in launch.attributes[: launch.count]]
        # Cooperative: CUlaunchAttributeID in cuda.h.
        assert attributes == [(2, [1, 0, 0])]
        sizes = [getattr(launch, name) for name, _ in launch._fields_[:7]]
        given = ctypes.cast(pointers[0], ctypes.POINTER(Numbers))[0]
        numbers = given.first, given.second
        self.launches.append((sizes, launch.stream, numbers, self.contexts[-1]))
        return self.status

    def cuGetErrorName(self, _: int, reference: Any) -> int:  # noqa: N802
        reference._obj.value = b"CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE"
        return 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = FakeDriver()
    for module in (cooperative, cuda_driver):
        monkeypatch.setattr(module, "cuda_driver", lambda: fake)
    return fake


def load() -> CooperativeKernel:
    return CooperativeKernel(b"code", "add", blocks=132, threads=256, shared_bytes=4096)


SIZES = [132, 1, 1, 256, 1, 1, 4096]


def test_a_launch_is_one_call_of_the_driver(driver: FakeDriver) -> None:
    load().launch(Numbers(1, 2), 7)
    assert driver.launches == [(SIZES, 7, (1, 2), 0x5000)]


def test_a_bound_launch_reads_its_structure_anew(driver: FakeDriver) -> None:
    numbers = Numbers(1, 2)
    launch = load().bind(numbers)
    for numbers.first in (3, 4):
        launch(8)
    assert [(stream, given) for _, stream, given, _ in driver.launches] == [(8, (3, 2)), (8, (4, 2))]


@pytest.mark.parametrize("context", [None, 0x6000])
def test_it_goes_to_its_device_whichever_is_current(driver: FakeDriver, context: int | None) -> None:
    kernel = load()
    driver.contexts = [context]
    kernel.launch(Numbers(1, 2), 7)
    assert driver.launches == [(SIZES, 7, (1, 2), 0x5000)]
    assert driver.contexts == [context]


def test_what_the_driver_refuses_is_named(driver: FakeDriver) -> None:
    kernel = load()
    driver.status = 720
    with pytest.raises(
        RuntimeError, match=r"a cooperative launch: .* CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE"
    ):
        kernel.launch(Numbers(1, 2), 7)
