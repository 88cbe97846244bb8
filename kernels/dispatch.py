"""Which implementation serves a tensor: Triton operators on CUDA, plain PyTorch elsewhere."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from foresight.kernels import reference

__all__ = ["implementation"]


def implementation(like: Tensor) -> ModuleType:
    """The module with `encode_context`, `product`, `fused_linear` and `attend` for the device of `like`.

    What each takes and returns is said in `foresight.kernels.reference`.
    """
    if not like.is_cuda:
        return reference
    # Triton's import takes a while, and a CPU has no use for it.
    from foresight.kernels import operators

    return operators
