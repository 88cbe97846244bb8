"""The persistent kernel's own source on the CPU, with the instructions of emulation.h; it needs g++."""

from __future__ import annotations

import ctypes
import subprocess
from functools import cache
from pathlib import Path
from shutil import which
from tempfile import mkdtemp

from foresight.kernels.persistent import persistent_source
from foresight.kernels.persistent_shape import PersistentShape

__all__ = ["COMPILER", "EmulatedKernel"]

COMPILER = which("g++")
_INSTRUCTIONS = Path(__file__).with_name("emulation.h")
_RUN = """
static const Parameters* given;
extern "C" bool run(const Parameters* parameters, int slow) {
  given = parameters;
  return emulation::launch(GRID, SHARED_BYTES, [] { adapter(*given); }, slow);
}
"""


class EmulatedKernel:
    """The kernel for one shape, compiled into `folder`."""

    def __init__(self, shape: PersistentShape, folder: Path) -> None:
        self.shape = shape
        self._library = _compiled(shape, folder)

    def launch(self, parameters: ctypes.Structure, slow: int = -1) -> None:
        """One launch, done when this returns; warp `slow` of every block has an eighth of the others' turns."""
        assert self._library.run(ctypes.byref(parameters), slow), (
            "the kernel waits for something that never comes"
        )


@cache
def _compiled(shape: PersistentShape, folder: Path) -> ctypes.CDLL:
    # A folder each, since a library is loaded but once by its path.
    place = Path(mkdtemp(dir=folder))
    source = place / "kernel.cpp"
    source.write_text(persistent_source(shape, _INSTRUCTIONS.read_text()) + _RUN)
    defines = [f"-D{name}={value}" for name, value in shape.defines().items()]
    options = ["-std=c++20", "-O2", "-Wno-unknown-pragmas", "-shared", "-fPIC"]
    command = [str(COMPILER), *options, *defines, source, "-o", place / "kernel.so"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    library = ctypes.CDLL(str(place / "kernel.so"))
    library.run.restype = ctypes.c_bool
    return library
