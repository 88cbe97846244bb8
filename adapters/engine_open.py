"""Members of an engine as functions: the one way in which export measures them and runtime serves them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from foresight.adapters.engine_error import EngineError
from foresight.adapters.engine_signature import ENGINE_INPUTS, ENGINE_OUTPUT

__all__ = ["Compiled", "open_aoti", "open_onnx"]

Compiled = Callable[[tuple[Tensor, ...]], Tensor]
"""The tensors of `ENGINE_INPUTS`, of the member's own shapes and dtype, to its output; devices may differ."""


def open_onnx(model: bytes) -> Compiled:
    """An ONNX file in ONNX Runtime on the CPU, with torch's number of threads.

    Raises EngineError without onnxruntime and for a file that it refuses.
    """
    try:
        onnxruntime = import_module("onnxruntime")
    except ImportError as error:
        raise EngineError("onnxruntime is not installed (foresight[onnx])") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that spin between calls would take the cores from the other models.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # Its exceptions have no common base of their own.
        raise EngineError(f"ONNX Runtime refused the file: {_one_line(error)}") from error

    def run(inputs: tuple[Tensor, ...]) -> Tensor:
        feed = {name: tensor.cpu().numpy() for name, tensor in zip(ENGINE_INPUTS, inputs, strict=True)}
        return torch.from_numpy(session.run([ENGINE_OUTPUT], feed)[0])

    return run


def open_aoti(path: Path, device: torch.device) -> Compiled:
    """A package of AOTInductor on `device`; loading it runs its code.

    The package checks neither shapes nor dtypes: whoever calls it must. Raises EngineError for a package that
    torch refuses.
    """
    _share_standard_library()
    # What torch._inductor.aoti_load_package makes, without the seconds that importing the compiler takes.
    # Single-threaded, because only then a call can be captured into a CUDA graph.
    index = -1 if device.type == "cpu" else device.index or 0
    try:
        loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", True, 1, index)
    except RuntimeError as error:
        raise EngineError(f"torch refused the package: {_one_line(error)}") from error

    def run(inputs: tuple[Tensor, ...]) -> Tensor:
        output: Tensor = loader.run([each.to(device) for each in inputs])[0]
        return output

    return run


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


@cache
def _share_standard_library() -> None:
    """Let packages use the process's own C++ library where a compiler has put a second one into them.

    Two of them do not know each other's locales, and a package's first regular expression crashes.
    """
    with suppress(OSError):
        ctypes.CDLL("libstdc++.so.6", mode=ctypes.RTLD_GLOBAL)
