"""CUDA C++ compiled while the program runs, by the compiler library that PyTorch brings along."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

__all__ = ["compile_cuda"]


def compile_cuda(source: str, defines: Mapping[str, int], capability: tuple[int, int]) -> bytes:
    """Machine code of `source`, a translation unit without includes, for GPUs of this compute capability.

    Raises RuntimeError with the compiler's first complaint where it finds one, OSError where there is no compiler.
    """
    library = _nvrtc()
    options = [
        # The "a" admits what only this very generation has.
        f"--gpu-architecture=sm_{capability[0]}{capability[1]}a",
        "--std=c++17",
        *(f"-D{name}={value}" for name, value in defines.items()),
    ]
    given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    program = ctypes.c_void_p()
    _check(library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None))
    try:
        if library.nvrtcCompileProgram(program, len(options), given):
            log = _fetch(library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog, program).decode()
            raise RuntimeError(next((line for line in log.splitlines() if "error" in line), log))
        return _fetch(library.nvrtcGetCUBINSize, library.nvrtcGetCUBIN, program)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _fetch(
    measure: ctypes._NamedFuncPointer, read: ctypes._NamedFuncPointer, program: ctypes.c_void_p
) -> bytes:
    size = ctypes.c_size_t()
    _check(measure(program, ctypes.byref(size)))
    content = ctypes.create_string_buffer(size.value)
    _check(read(program, content))
    return content.raw


def _check(status: int) -> None:
    if status:
        _nvrtc().nvrtcGetErrorString.restype = ctypes.c_char_p
        raise RuntimeError(f"NVRTC: {_nvrtc().nvrtcGetErrorString(status).decode()}")


@cache
def _nvrtc() -> ctypes.CDLL:
    failure: OSError | None = None
    for candidate in _candidates():
        try:
            return ctypes.CDLL(candidate)
        except OSError as error:
            failure = failure or error
    raise OSError(f"no CUDA compiler library was found: {failure}")


def _candidates() -> Iterator[str]:
    yield f"libnvrtc.so.{(torch.version.cuda or '').partition('.')[0]}"
    spec = find_spec("nvidia")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        yield from map(str, sorted(Path(folder).glob("*/lib/libnvrtc.so.*")))
