"""Compiles the kernels for an H200 without one: the real launch path up to the launch itself."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from foresight.kernels import launcher

__all__ = [
    "Compiled",
    "Usage",
    "compiling",
    "overwritten_tiles",
    "pretended_device",
    "resource_usage",
    "warpgroup_waits",
]

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class _Driver:
    """Says that the device is one of compute capability 9.0."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:  # noqa: ARG002
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """What became of one launch: bytes of `shared` memory and of `stack` (spilled registers) a block."""

    kernel: str
    grid: tuple[int, ...]
    warps: int
    registers: int
    stack: int
    shared: int
    ttgir: str
    ptx: str


@contextmanager
def compiling() -> Iterator[list[Compiled]]:
    """Within it, launches are compiled and noted instead of started."""
    found: list[Compiled] = []

    class Wrapped:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            def compile_only(*arguments: Any, **options: Any) -> None:
                found.append(_note(self.kernel, self.kernel.warmup(*arguments, grid=grid, **options), grid))

            return compile_only

    real, launcher.wrap_triton = launcher.wrap_triton, Wrapped
    try:
        with pretended_device():
            yield found
    finally:
        launcher.wrap_triton = real


@contextmanager
def pretended_device() -> Iterator[None]:
    """Within it, Triton believes in a device of compute capability 9.0."""
    driver.set_active(_Driver())
    try:
        yield
    finally:
        # Not reset_active(): it looks for a device at once.
        driver._active = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a kernel takes: registers and bytes of `stack` a thread, bytes of `shared` memory, bytes of `code`."""

    registers: int
    stack: int
    shared: int
    code: int


def resource_usage(code: bytes) -> Usage:
    """Of the one kernel in machine code; `shared` is what it takes besides what a launch asks for."""
    usage, sections = _dumped(code, "-res-usage"), _dumped(code, "-elf")
    numbers = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:0 ", usage)
    # Index, offset and size of a section of instructions.
    text = re.search(r"^ *\w+ +\w+ +(\w+) .* PROGBITS .* \.text\.\w+$", sections, re.MULTILINE)
    assert numbers is not None, usage
    assert text is not None, sections
    registers, stack, shared = map(int, numbers.groups())
    return Usage(registers=registers, stack=stack, shared=shared, code=int(text[1], 16))


def warpgroup_waits(code: bytes) -> int:
    """Waits for asynchronous products in machine code: one behind each where the compiler cannot follow who waits."""
    return len(re.findall(r"\bWARPGROUP\.DEPBAR\b", _dumped(code, "-sass")))


def _dumped(code: bytes, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        command = [str(_TOOLS / "cuobjdump"), option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def overwritten_tiles(ttgir: str) -> list[str]:
    """Rings of tiles in shared memory of which one may be filled again while an asynchronous product still reads it.

    A loop copies as many steps ahead as were copied before it. A product that no wait ends before the loop's copy
    needs one tile more than that. Fails where it does not understand what Triton wrote.
    """
    views = dict(re.findall(r"(%\w+) = ttg\.memdesc_index (%\w+)\[", ttgir))
    # The other operand of a product may lie in registers, or be a transposed view.
    views |= dict(re.findall(r"(%\w+) = ttg\.memdesc_trans (%\w+) ", ttgir))

    def ring(name: str) -> str:
        while name in views:
            name = views[name]
        return name

    sizes = dict(re.findall(r"(%\w+) = ttg\.local_alloc : \(\) -> !ttg\.memdesc<(\d+)x", ttgir))
    copies = [ring(name) for name in re.findall(r"ttg\.async_copy_global_to_local %\w+, (%\w+) ", ttgir)]
    products = list(re.finditer(r"ttng\.warp_group_dot (%\w+), (%\w+), ", ttgir))
    assert len(products) == len(re.findall(r"warp_group_dot\b", ttgir))
    assert len(copies) == len(re.findall(r"async_copy_global_to_local\b", ttgir))
    assert sizes.keys() >= set(copies)
    found = []
    for product in products:
        before_copy = re.split(
            r"ttg\.async_copy_global_to_local|scf\.yield", ttgir[product.end() :], maxsplit=1
        )[0]
        running = "pendings = 0" not in before_copy
        rings = [name for name in map(ring, product.groups()) if name in copies]
        found += [name for name in rings if int(sizes[name]) < copies.count(name) - 1 + running]
    return found


def _note(kernel: Any, compiled: Any, grid: tuple[int, ...]) -> Compiled:
    usage = resource_usage(compiled.asm["cubin"])
    return Compiled(
        kernel=kernel.fn.__name__,
        grid=grid,
        warps=compiled.metadata.num_warps,
        registers=usage.registers,
        stack=usage.stack,
        shared=compiled.metadata.shared,
        ttgir=compiled.asm["ttgir"],
        ptx=compiled.asm["ptx"],
    )
