"""A short name for a set of weights, so that an adapter can tell the stack that it was trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from foresight.models.presets import StackConfig

__all__ = ["stack_fingerprint"]

_PLACES = ("vlm", "dino", "transformer", "vae")
_BLOCK, _STRIDE = 64 * 1024, 1024 * 1024


def stack_fingerprint(config: StackConfig, files: Iterable[Path]) -> str:
    """Return the stack's name and 12 hexadecimal digits over its configuration and weights.

    Weight files count by their length, their header and 64 KiB of every MiB: cheap for 18 GB. Where the
    files lie does not matter.
    """
    digest = hashlib.sha256()
    values = {key: value for key, value in asdict(config).items() if key not in _PLACES}
    digest.update(json.dumps(values, sort_keys=True).encode())
    for file in files:
        if file.suffix == ".safetensors":
            _add_weights(digest, file)
        else:
            digest.update(file.read_bytes())
    return f"{config.name}-{digest.hexdigest()[:12]}"


def _add_weights(digest: hashlib._Hash, file: Path) -> None:
    size = file.stat().st_size
    digest.update(str(size).encode())
    with file.open("rb") as stream:
        header = int.from_bytes(stream.read(8), "little")
        digest.update(stream.read(min(header, size)))
        for start in range(8 + header, size, _STRIDE):
            stream.seek(start)
            digest.update(stream.read(_BLOCK))
