"""What is asked of the driver for a copy, with a stand-in for its library."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from foresight.kernels import cuda_driver
from foresight.runtime import device_copy
from foresight.runtime.device_copy import DeviceCopy


class FakeDriver:
    """Keeps the copies that it is asked for and answers with `status`."""

    def __init__(self) -> None:
        self.context: int | None = 0x5000
        self.status = 0
        self.copies: list[tuple[int, int, int, int]] = []

        # Functions, since the binding gives them argument types.
        def copy(*arguments: int) -> int:
            self.copies.append(arguments)  # type: ignore[arg-type]
            return self.status

        def context(reference: Any) -> int:
            reference._obj.value = self.context
            return 0

        def error_name(status: int, reference: Any) -> int:
            reference._obj.value = {700: b"CUDA_ERROR_ILLEGAL_ADDRESS"}.get(status)
            return 0

        self.cuMemcpyDtoDAsync_v2, self.cuCtxGetCurrent, self.cuGetErrorName = copy, context, error_name


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = FakeDriver()
    for module in (cuda_driver, device_copy):
        monkeypatch.setattr(module, "cuda_driver", lambda: fake)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    return fake


def test_a_copy_is_one_call_of_the_driver(driver: FakeDriver) -> None:
    copy = DeviceCopy(torch.device("cuda", 0)).here()
    assert copy is not None
    copy(0x7F00_0000_0000, 0x7F00_0001_0000, 4096, 7)
    assert driver.copies == [(0x7F00_0000_0000, 0x7F00_0001_0000, 4096, 7)]


@pytest.mark.parametrize("context", [None, 0x6000])
def test_there_is_none_where_another_device_or_none_is_current(
    driver: FakeDriver, context: int | None
) -> None:
    copies = DeviceCopy(torch.device("cuda", 0))
    driver.context = context
    assert copies.here() is None


@pytest.mark.parametrize(("status", "name"), [(700, "CUDA_ERROR_ILLEGAL_ADDRESS"), (12345, "CUresult 12345")])
def test_what_the_driver_refuses_is_named(driver: FakeDriver, status: int, name: str) -> None:
    driver.status = status
    with pytest.raises(RuntimeError, match=f"of 4096 bytes: the CUDA driver returned {name}"):
        DeviceCopy(torch.device("cuda", 0)).copy(1 << 40, 1 << 41, 4096, 0)
