"""A short name for a set of weights, so that an adapter can tell the stack that it was trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from foresight.models.part_files import PARTS, PartFiles
from foresight.models.presets import StackConfig
from foresight.models.repository import HubRepository, locate
from foresight.models.stack_file import load_config, stack_folder

__all__ = ["local_fingerprint", "random_fingerprint", "stack_fingerprint"]

_BLOCK, _STRIDE = 64 * 1024, 1024 * 1024


def stack_fingerprint(config: StackConfig, files: Iterable[Path]) -> str:
    """Return the stack's name and 12 hexadecimal digits over its configuration and weights.

    Weight files count by their length, their header and 64 KiB of every MiB: cheap for 18 GB. Where the
    files lie does not matter.
    """
    digest = hashlib.sha256()
    values = {key: value for key, value in asdict(config).items() if key not in PARTS}
    digest.update(json.dumps(values, sort_keys=True).encode())
    for file in files:
        if file.suffix == ".safetensors":
            _add_weights(digest, file)
        else:
            digest.update(file.read_bytes())
    return f"{config.name}-{digest.hexdigest()[:12]}"


def random_fingerprint(config: StackConfig) -> str:
    """Return what a stack with random weights is called; none of them was trained."""
    return f"{config.name}-random"


def local_fingerprint(name_or_folder: str | Path, *, random_weights: bool = False) -> str | None:
    """Return the fingerprint that a stack will have, before it is loaded; None where parts of it are the hub's.

    Raises StackError for an unknown stack and for files that are missing.
    """
    config, folder = load_config(name_or_folder), stack_folder(name_or_folder)
    if random_weights:
        return random_fingerprint(config)
    places = {part: locate(getattr(config, part), folder) for part in PARTS}
    if any(isinstance(place.repository, HubRepository) for place in places.values()):
        return None
    files = [file for part, place in places.items() for file in PartFiles(part, place).all]
    return stack_fingerprint(config, files)


def _add_weights(digest: hashlib._Hash, file: Path) -> None:
    size = file.stat().st_size
    digest.update(str(size).encode())
    with file.open("rb") as stream:
        header = int.from_bytes(stream.read(8), "little")
        digest.update(stream.read(min(header, size)))
        for start in range(8 + header, size, _STRIDE):
            stream.seek(start)
            digest.update(stream.read(_BLOCK))
