"""Reading an engine: the manifest first, and no member's byte to anybody before its sha256 is right."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Self

from foresight.adapters.engine_archive import ArchiveEntry, looks_like_archive, read_archive
from foresight.adapters.engine_error import EngineDamagedError, EngineError
from foresight.adapters.engine_manifest import MANIFEST, MAX_MANIFEST_BYTES, EngineManifest, EngineMember

__all__ = ["MAX_MEMBER_BYTES", "EngineFile", "check_sha256", "is_engine_archive", "read_bare_plan"]

MAX_MEMBER_BYTES = 2**31
_BLOCK = 2**20


class EngineFile:
    """An open engine whose structure and manifest are checked; members are checked as they are read.

    `expected_sha256` pins the whole file. Raises EngineError, one line that begins with the path.
    """

    def __init__(self, path: str | Path, *, expected_sha256: str | None = None) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise EngineError(f"{self.path}: is not a file")
        self._file = self.path.open("rb")
        try:
            check_sha256(self._file, expected_sha256)
            self._entries = read_archive(self._file)
            self.manifest = self._read_manifest()
            self._check_members()
        except EngineError as error:
            self.close()
            raise EngineError(f"{self.path}: {error}") from error
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; members that were read or extracted stay."""
        self._file.close()

    def check_stack(self, fingerprint: str) -> None:
        """Raise EngineError unless the adapter was trained on the stack of that fingerprint."""
        trained_on = self.manifest.stack_fingerprint
        if trained_on != fingerprint:
            raise EngineError(
                f"{self.path}: was made for the features of stack {trained_on!r}, "
                f"those of {fingerprint!r} would mean nothing to it"
            )

    def verify(self) -> None:
        """Raise EngineDamagedError unless every member's sha256 is right, also of those that will not be loaded."""
        for member in self.manifest.members:
            digest = hashlib.sha256()
            for block in self._blocks(self._entries[member.name]):
                digest.update(block)
            self._check_digest(member, digest.hexdigest())

    def read(self, name: str) -> bytes:
        """A member's bytes, after their sha256 was found right; raises EngineError."""
        member = self.manifest.member(name)
        content = b"".join(self._blocks(self._entries[name]))
        self._check_digest(member, hashlib.sha256(content).hexdigest())
        return content

    def extract(self, name: str, folder: Path) -> Path:
        """Write a member into `folder` and return its path; nothing stays there if its sha256 is wrong.

        The folder must be the caller's own: whoever can write to it can change the file after the check.
        """
        member, path, digest = self.manifest.member(name), folder / name, hashlib.sha256()
        try:
            with path.open("xb") as file:
                for block in self._blocks(self._entries[name]):
                    digest.update(block)
                    file.write(block)
            self._check_digest(member, digest.hexdigest())
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path

    def _read_manifest(self) -> EngineManifest:
        first = next(iter(self._entries.values()))
        if first.name != MANIFEST:
            raise EngineError(f"begins with {first.name!r}, an engine begins with {MANIFEST}")
        if first.size > MAX_MANIFEST_BYTES:
            raise EngineError(
                f"{MANIFEST} claims {first.size} bytes, an engine's has at most {MAX_MANIFEST_BYTES}"
            )
        return EngineManifest.from_json(b"".join(self._blocks(first)))

    def _check_members(self) -> None:
        listed = {member.name: member for member in self.manifest.members}
        for name, entry in self._entries.items():
            if name == MANIFEST:
                continue
            if name not in listed:
                raise EngineError(f"member {name!r} is in the file but not in the manifest")
            if entry.size > MAX_MEMBER_BYTES:
                raise EngineError(
                    f"member {name!r} has {entry.size} bytes, at most {MAX_MEMBER_BYTES} are read"
                )
            if entry.size != listed[name].size:
                raise EngineError(
                    f"member {name!r} has {entry.size} bytes, the manifest says {listed[name].size}"
                )
        missing = sorted(listed.keys() - self._entries.keys())
        if missing:
            raise EngineError(f"member {missing[0]!r} is in the manifest but not in the file")

    def _blocks(self, entry: ArchiveEntry) -> Iterator[bytes]:
        left = entry.size
        self._file.seek(entry.offset)
        while left:
            block = self._file.read(min(left, _BLOCK))
            if not block:
                raise EngineDamagedError(f"{self.path}: the file became shorter while it was read")
            left -= len(block)
            yield block

    def _check_digest(self, member: EngineMember, digest: str) -> None:
        if not hmac.compare_digest(digest, member.sha256):
            raise EngineDamagedError(
                f"{self.path}: member {member.name!r} is damaged or was changed: its sha256 is not the manifest's"
            )


def is_engine_archive(path: str | Path) -> bool:
    """Whether the file is an engine with a manifest, maybe a damaged one, and no bare TensorRT plan."""
    path = Path(path)
    if not path.is_file():
        raise EngineError(f"{path}: is not a file")
    with path.open("rb") as file:
        return looks_like_archive(file)


def read_bare_plan(path: str | Path, *, expected_sha256: str | None = None) -> bytes:
    """A bare TensorRT plan's bytes; raises EngineError for an engine with a manifest and a wrong sha256."""
    path = Path(path)
    if is_engine_archive(path):
        raise EngineError(f"{path}: is an engine with a manifest, not a bare TensorRT plan")
    with path.open("rb") as file:
        content = file.read(MAX_MEMBER_BYTES + 1)
    if not 0 < len(content) <= MAX_MEMBER_BYTES:
        raise EngineError(f"{path}: must have from 1 to {MAX_MEMBER_BYTES} bytes")
    if expected_sha256 is not None:
        try:
            _check_pin(hashlib.sha256(content).hexdigest(), expected_sha256)
        except EngineError as error:
            raise EngineError(f"{path}: {error}") from error
    return content


def check_sha256(file: BufferedReader, expected: str | None) -> None:
    """Raise EngineError unless the whole file has the `expected` sha256; None expects nothing."""
    if expected is not None:
        file.seek(0)
        _check_pin(hashlib.file_digest(file, "sha256").hexdigest(), expected)


def _check_pin(digest: str, expected: str) -> None:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", expected):
        raise EngineError(f"expected sha256 {expected!r}: must be 64 hexadecimal digits")
    if not hmac.compare_digest(digest, expected.lower()):
        raise EngineError(f"sha256 is {digest}, not the expected {expected.lower()}")
