"""A stack's configuration as a file: stack.json beside its weights."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from foresight.models.errors import StackError
from foresight.models.presets import STACKS, StackConfig

__all__ = ["STACK_FILE", "load_config", "read_stack_file", "stack_folder", "write_stack_file"]

STACK_FILE = "stack.json"
_WEIGHTS = Path(__file__).parent / "weights"


def stack_folder(name_or_folder: str | Path) -> Path:
    """Return a stack's folder: inside the package for a stack that ships, otherwise the folder itself."""
    return _WEIGHTS / str(name_or_folder) if str(name_or_folder) in STACKS else Path(name_or_folder)


def load_config(name_or_folder: str | Path) -> StackConfig:
    """Return the configuration of a stack that ships, or of a folder with a stack.json.

    Raises StackError for anything else.
    """
    name = str(name_or_folder)
    if name in STACKS:
        return STACKS[name]
    folder = Path(name_or_folder)
    if not folder.is_dir():
        known = ", ".join(STACKS)
        raise StackError(
            f"stack {name!r}: no such stack or folder; must be {known} or a folder with {STACK_FILE}"
        )
    return read_stack_file(folder)


def read_stack_file(folder: Path) -> StackConfig:
    """Read a folder's stack.json; raises StackError where it is missing or says what it must not."""
    path = folder / STACK_FILE
    if not path.is_file():
        raise StackError(f"stack folder {folder}: has no {STACK_FILE}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StackError(f"{path}: is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise StackError(f"{path}: must hold a JSON object")
    names = {field.name for field in fields(StackConfig)}
    if unknown := sorted(set(content) - names):
        raise StackError(f"{path}: unknown key {unknown[0]!r}; known are {', '.join(sorted(names))}")
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in content.items()
    }
    try:
        return StackConfig(**values)
    except (TypeError, ValueError) as error:
        raise StackError(f"{path}: {str(error).removeprefix('StackConfig.__init__() ')}") from error


def write_stack_file(folder: Path, config: StackConfig) -> None:
    """Write a configuration as the folder's stack.json."""
    text = json.dumps(asdict(config), indent=2) + "\n"
    (folder / STACK_FILE).write_text(text, encoding="utf-8")
