"""The zip that an engine is: stored members and nothing else, found without trusting what it claims.

A strict subset of APPNOTE.TXT 6.3: no compression, encryption, comments, links, folders, zip64 or data
descriptors, and members that lie one after the other from the first byte to the central directory. Knows
nothing of what the members hold.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

from foresight.adapters.engine_error import EngineError

__all__ = ["ArchiveEntry", "looks_like_archive", "read_archive"]

_END = struct.Struct("<4s4H2LH")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_END_MAGIC, _CENTRAL_MAGIC, _LOCAL_MAGIC = b"PK\x05\x06", b"PK\x01\x02", b"PK\x03\x04"
_MOST_ENTRIES = 256
_MOST_DIRECTORY_BYTES = 2**17
_UTF8_NAME = 0x800


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveEntry:
    """Where a member's bytes lie in the file."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class _Listed:
    name: str
    header: int
    size: int


def looks_like_archive(file: BinaryIO) -> bool:
    """Whether the file begins or ends as a zip does; a damaged one still counts."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    begins = file.read(4) == _LOCAL_MAGIC
    file.seek(max(0, size - _END.size - 2**16))
    return begins or _END_MAGIC in file.read()


def read_archive(file: BinaryIO) -> Mapping[str, ArchiveEntry]:
    """The members of a zip in the order of their bytes, by name.

    Raises EngineError for everything that the module's first lines exclude and for a file that is cut.
    """
    total = file.seek(0, os.SEEK_END)
    start, entries = _read_end(file, total)
    listed = sorted(_read_directory(file, start, total - _END.size - start, entries), key=lambda x: x.header)
    found: dict[str, ArchiveEntry] = {}
    position = 0
    for each in listed:
        if each.name in found:
            raise EngineError(f"member {each.name!r} stands in the file twice")
        if each.header != position:
            raise EngineError(f"member {each.name!r} does not follow the one before it")
        entry = _read_local(file, each, start)
        found[each.name] = entry
        position = entry.offset + entry.size
    if position != start:
        raise EngineError("the members do not fill the file up to its table of contents")
    return found


def _read_end(file: BinaryIO, total: int) -> tuple[int, int]:
    if total < _END.size:
        raise EngineError("the file is too short for a zip")
    file.seek(total - _END.size)
    magic, disk, first_disk, here, entries, size, start, comment = _END.unpack(file.read(_END.size))
    if magic != _END_MAGIC or comment:
        raise EngineError("the zip's end is missing: the file is cut or something was appended to it")
    if disk or first_disk or here != entries:
        raise EngineError("a zip of several parts cannot be an engine")
    if not 0 < entries <= _MOST_ENTRIES or size > _MOST_DIRECTORY_BYTES:
        raise EngineError(f"the zip lists {entries} members in {size} bytes, more than an engine may")
    if start + size != total - _END.size:
        raise EngineError("the zip's table of contents does not lie where its end says: the file is damaged")
    return start, entries


def _read_directory(file: BinaryIO, start: int, size: int, entries: int) -> list[_Listed]:
    file.seek(start)
    directory, position, listed = file.read(size), 0, []
    for _ in range(entries):
        if position + _CENTRAL.size > size:
            raise EngineError("the zip's table of contents is cut")
        values = _CENTRAL.unpack_from(directory, position)
        magic, _, _, flags, method, _, _, _, packed, unpacked, name, extra, comment, disk, _, mode, header = (
            values
        )
        if magic != _CENTRAL_MAGIC or disk:
            raise EngineError("the zip's table of contents is damaged")
        position += _CENTRAL.size
        raw = directory[position : position + name]
        position += name + extra + comment
        text = _name(raw)
        _check_plain(text, flags, method, mode >> 16)
        if packed != unpacked:
            raise EngineError(f"member {text!r} has two sizes, {packed} and {unpacked} bytes")
        listed.append(_Listed(text, header, unpacked))
    if position != size:
        raise EngineError("the zip's table of contents is damaged")
    return listed


def _read_local(file: BinaryIO, listed: _Listed, end: int) -> ArchiveEntry:
    file.seek(listed.header)
    raw = file.read(_LOCAL.size)
    if len(raw) < _LOCAL.size:
        raise EngineError(f"member {listed.name!r} begins past the file's end")
    magic, _, flags, method, _, _, _, packed, unpacked, name, extra = _LOCAL.unpack(raw)
    if magic != _LOCAL_MAGIC or _name(file.read(name)) != listed.name:
        raise EngineError(f"member {listed.name!r} is not where the table of contents says")
    _check_plain(listed.name, flags, method, 0)
    if (packed, unpacked) != (listed.size, listed.size):
        raise EngineError(f"member {listed.name!r} has two sizes, {unpacked} and {listed.size} bytes")
    offset = listed.header + _LOCAL.size + name + extra
    if offset + listed.size > end:
        raise EngineError(f"member {listed.name!r} claims {listed.size} bytes, more than the file has")
    return ArchiveEntry(name=listed.name, offset=offset, size=listed.size)


def _name(raw: bytes) -> str:
    try:
        name = raw.decode("ascii")
    except UnicodeDecodeError:
        raise EngineError(f"member name {raw[:64]!r}: must be plain ASCII") from None
    if name in ("", ".", "..") or any(each in name for each in "/\\:\0") or not name.isprintable():
        raise EngineError(f"member name {name[:64]!r}: must be a plain file name, without a folder")
    return name


def _check_plain(name: str, flags: int, method: int, mode: int) -> None:
    if method != 0:
        raise EngineError(f"member {name!r} is compressed, an engine's members are stored as they are")
    if flags & ~_UTF8_NAME:
        raise EngineError(f"member {name!r} is encrypted or of unstated size (flags {flags:#x})")
    if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise EngineError(f"member {name!r} is a link or a folder, must be a file")
