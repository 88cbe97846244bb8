"""Which device the models run on, and whether it has failed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from foresight.runtime.errors import ReconstructError

if TYPE_CHECKING:
    import torch

__all__ = ["check_device_name", "find_device", "is_device_fault"]

_NAMES = re.compile(r"auto|cpu|cuda(:\d+)?")


def check_device_name(name: str) -> None:
    """Raise ReconstructError unless `name` is "auto", "cpu", "cuda" or "cuda:N"."""
    if not _NAMES.fullmatch(name):
        raise ReconstructError(f"device {name!r}: must be auto, cpu, cuda or cuda:N")


def find_device(name: str) -> torch.device:
    """The device of that name; "auto" is the first GPU, or the CPU where there is none.

    Raises ReconstructError for an unknown name and for a GPU that is not there.
    """
    # A command refuses a wrong name before it spends seconds on this import.
    import torch

    check_device_name(name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ReconstructError(f"device {name}: torch sees {count} CUDA devices here; use auto or cpu")
        device = torch.device("cuda", device.index or 0)
    return device


def is_device_fault(error: BaseException) -> bool:
    """Whether an error says that the GPU cannot be used any more by this process."""
    return "CUDA error" in str(error) or type(error).__name__ == "AcceleratorError"
