"""Writing an engine: complete under another name first, then in its place at once."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foresight.adapters.config import AdapterConfig
from foresight.adapters.engine_error import EngineError
from foresight.adapters.engine_file import MAX_MEMBER_BYTES, EngineFile
from foresight.adapters.engine_manifest import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    EngineBucket,
    EngineManifest,
    EngineMember,
    EngineParity,
    EngineTarget,
)

__all__ = ["MemberSource", "write_engine"]

# Short of where a zip needs the extensions that the reader refuses.
_MAX_ARCHIVE_BYTES = 2**32 - 2**21

# The earliest date that a zip can hold: the same members make the same file.
_DATE = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberSource:
    """A file that becomes a member of an engine."""

    name: str
    path: Path
    dtype: str
    target: EngineTarget
    parity: EngineParity | None = None


def write_engine(
    path: str | Path,
    members: Sequence[MemberSource],
    *,
    adapter: AdapterConfig,
    stack_fingerprint: str,
    buckets: Sequence[EngineBucket],
    quality: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
) -> EngineManifest:
    """Write an engine, read it back, and only then give it its name, replacing a file of that name.

    Raises EngineError for members out of tolerance and for what the reader would refuse, OSError when the
    disk refuses; nothing is left then.
    """
    for source in members:
        if source.parity is not None and not source.parity.holds:
            raise EngineError(
                f"{source.name}: differs from eager by {source.parity.max_error:.3g}, "
                f"more than {source.parity.bound:.3g}"
            )
    manifest = EngineManifest(
        adapter=adapter,
        stack_fingerprint=stack_fingerprint,
        buckets=tuple(buckets),
        members=tuple(_describe(source) for source in members),
        quality=dict(quality or {}),
        versions=dict(versions or {}),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
        new = Path(scratch) / path.name
        _write(new, manifest, members)
        with EngineFile(new) as engine:
            engine.verify()
        new.replace(path)
    return manifest


def _describe(source: MemberSource) -> EngineMember:
    size = source.path.stat().st_size
    if size > MAX_MEMBER_BYTES:
        raise EngineError(f"{source.name}: has {size} bytes, a member has at most {MAX_MEMBER_BYTES}")
    with source.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return EngineMember(
        name=source.name,
        size=size,
        sha256=digest,
        dtype=source.dtype,
        target=source.target,
        parity=source.parity,
    )


def _write(path: Path, manifest: EngineManifest, members: Sequence[MemberSource]) -> None:
    text = manifest.to_json().encode()
    if len(text) > MAX_MANIFEST_BYTES:
        raise EngineError(f"{MANIFEST}: has {len(text)} bytes, at most {MAX_MANIFEST_BYTES} are read")
    total = sum(source.path.stat().st_size for source in members)
    if total > _MAX_ARCHIVE_BYTES:
        raise EngineError(f"members: have {total} bytes together, an engine has at most {_MAX_ARCHIVE_BYTES}")
    with path.open("wb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=False) as archive:
            archive.writestr(_info(MANIFEST), text)
            for source in members:
                # Whole, because zipfile writes a member's size ahead of it only where it knows it.
                archive.writestr(_info(source.name), source.path.read_bytes())
        file.flush()
        os.fsync(file.fileno())


def _info(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _DATE)
    info.external_attr = 0o644 << 16
    return info
