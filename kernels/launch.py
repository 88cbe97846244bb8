"""How each kernel is launched: block sizes by device and shape, from a table that is shipped.

Nothing is tuned while serving; `python -m foresight.runtime.tuning` measures and writes the table.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path

__all__ = [
    "KERNELS",
    "Launch",
    "LaunchTable",
    "find_launch",
    "find_table",
    "read_table",
    "table_path",
    "using_table",
]

# What the numbers of a shape stand for, by kernel; the nearest shape in the table decides.
KERNELS: Mapping[str, tuple[str, ...]] = {
    "project": ("vlm_rows", "dino_rows", "vlm_dim", "hidden_dim"),
    "finish": ("rows", "vlm_dim", "hidden_dim"),
    "product": ("rows", "in_features", "out_features"),
    "linear": ("rows", "in_features", "out_features"),
    "attend": ("queries", "heads", "keys", "batch"),
}
_FOLDER = Path(__file__).parent / "settings"
_FALLBACK = "nvidia_h200"


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Block sizes of one launch; a kernel reads those that it has.

    `rows` and `columns` of the output a block makes, `depth` of the contracted axis (or keys) a step takes,
    `splits` of that axis over blocks. Raises ValueError for numbers that are not powers of two where Triton needs
    them.
    """

    rows: int = 16
    columns: int = 64
    depth: int = 64
    splits: int = 1
    warps: int = 4
    stages: int = 3

    def __post_init__(self) -> None:
        for name in ("rows", "columns", "depth", "warps"):
            value = getattr(self, name)
            if value < 1 or value & (value - 1):
                raise ValueError(f"{name} {value}: must be a power of two")
        for name in ("splits", "stages"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchTable:
    """Launches of one device; how they overlap is in `programmatic`, as `foresight.kernels.launcher` says.

    `measured` is false for a table that was reasoned out and compiled, but never timed on such a device.
    """

    device: str
    programmatic: int
    entries: Mapping[str, Mapping[tuple[int, ...], Launch]]
    measured: bool = False

    def nearest(self, kernel: str, shape: Sequence[int]) -> Launch:
        """The launch of the shape that is nearest by ratio; the default one for an empty table."""
        entries = self.entries.get(kernel, {})
        if not entries:
            return Launch()
        return entries[min(entries, key=lambda known: _distance(known, shape))]

    def with_entries(self, kernel: str, entries: Mapping[tuple[int, ...], Launch]) -> LaunchTable:
        """The same table with other launches for `kernel`."""
        return replace(self, entries={**self.entries, kernel: dict(entries)})

    def write(self, path: Path) -> None:
        """Write the table as JSON, one line a shape."""
        blocks = []
        for kernel, entries in self.entries.items():
            lines = (
                json.dumps({"shape": list(shape), **asdict(launch)}) for shape, launch in entries.items()
            )
            blocks.append(f'    "{kernel}": [\n      ' + ",\n      ".join(lines) + "\n    ]")
        named = {"device": self.device, "measured": self.measured, "programmatic": self.programmatic}
        head = "".join(f'  "{name}": {json.dumps(value)},\n' for name, value in named.items())
        path.write_text(
            "{\n" + head + '  "kernels": {\n' + ",\n".join(blocks) + "\n  }\n}\n", encoding="utf-8"
        )


def _distance(known: Iterable[int], shape: Iterable[int]) -> float:
    pairs = zip(known, shape, strict=True)
    return sum(abs(math.log2(max(one, 1) / max(other, 1))) for one, other in pairs)


def table_path(device: str) -> Path:
    """Where the table of a device of this name ("NVIDIA H200") lies."""
    return _FOLDER / (device.lower().replace(" ", "_") + ".json")


_CHOSEN: ContextVar[LaunchTable | None] = ContextVar("_CHOSEN", default=None)


@contextmanager
def using_table(table: LaunchTable) -> Iterator[None]:
    """Within it, graphs are captured with the launches of `table` instead of the shipped ones."""
    token = _CHOSEN.set(table)
    try:
        yield
    finally:
        _CHOSEN.reset(token)


def find_table(device: str) -> LaunchTable:
    """The table of a device of this name; that of the H200 where there is none.

    Raises ValueError as `read_table` does.
    """
    return _CHOSEN.get() or _shipped_table(device)


@cache
def _shipped_table(device: str) -> LaunchTable:
    path = table_path(device)
    return read_table(path if path.is_file() else table_path(_FALLBACK))


def read_table(path: Path) -> LaunchTable:
    """The table that `LaunchTable.write` wrote.

    Raises ValueError for a kernel, a field or a shape that it should not have.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    known = {field.name for field in fields(Launch)}
    entries: dict[str, dict[tuple[int, ...], Launch]] = {}
    for kernel, rows in content["kernels"].items():
        if kernel not in KERNELS:
            raise ValueError(f"{path.name}: kernel {kernel!r} must be one of {', '.join(KERNELS)}")
        for row in rows:
            shape = tuple(row.pop("shape"))
            if len(shape) != len(KERNELS[kernel]) or not row.keys() <= known:
                raise ValueError(
                    f"{path.name}: {kernel} {shape} must have {KERNELS[kernel]} and known fields"
                )
            entries.setdefault(kernel, {})[shape] = Launch(**row)
    return LaunchTable(
        device=content["device"],
        programmatic=content["programmatic"],
        entries=entries,
        measured=content["measured"],
    )


def find_launch(device: str, kernel: str, shape: Sequence[int]) -> Launch:
    """The launch of `kernel` for `shape` (see KERNELS) on a device of this name."""
    return find_table(device).nearest(kernel, shape)
