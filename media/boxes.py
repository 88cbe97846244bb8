"""The outer structure of mp4/mov and Matroska/WebM files, read without decoding.

It answers what the decoder's library does not say: whether the file was cut off, and whether its index is
missing.
Sources: ISO/IEC 14496-12 (boxes), RFC 8794 and RFC 9559 (EBML, Matroska).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

_MAX_TOP_LEVEL = 20_000
_MAX_INNER = 256
_EBML = b"\x1a\x45\xdf\xa3"
_SEGMENT = b"\x18\x53\x80\x67"


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """One box of an ISO base media file: its type, and the offsets of its start, content and end."""

    kind: bytes
    start: int
    content: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """What the outer structure says: how many bytes are missing at the end, and whether an index is there."""

    missing_bytes: int
    has_index: bool


def walk_boxes(file: BinaryIO, start: int, end: int, most: int = _MAX_INNER) -> Iterator[Box]:
    """Yield at most `most` boxes between two offsets; the last one may claim to end behind `end`."""
    for _ in range(most):
        if start + 8 > end:
            return
        file.seek(start)
        head = file.read(16)
        if len(head) < 8 or not head[4:8].isascii():
            return
        size, content = int.from_bytes(head[:4], "big"), start + 8
        if size == 1 and len(head) == 16:
            size, content = int.from_bytes(head[8:16], "big"), start + 16
        elif size == 0:
            size = end - start
        if start + size < content:
            return
        yield Box(kind=head[4:8], start=start, content=content, end=start + size)
        start += size


def find_box(file: BinaryIO, start: int, end: int, kind: bytes) -> Box | None:
    """Return the first box of a kind between two offsets, or None."""
    return next((box for box in walk_boxes(file, start, end) if box.kind == kind), None)


def find_index(file: BinaryIO, size: int) -> Box | None:
    """Return the index (`moov`) of an mp4 file of `size` bytes, or None."""
    return next((box for box in walk_boxes(file, 0, size, _MAX_TOP_LEVEL) if box.kind == b"moov"), None)


def inspect_structure(file: BinaryIO, size: int) -> Structure:
    """Read the outer structure of a file of `size` bytes and leave the file at its beginning."""
    file.seek(0)
    head = file.read(12)
    if head.startswith(_EBML):
        structure = Structure(missing_bytes=_missing_of_matroska(file, size), has_index=True)
    elif head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip"):
        boxes = list(walk_boxes(file, 0, size, _MAX_TOP_LEVEL))
        moov = next((box for box in boxes if box.kind == b"moov"), None)
        missing = max(0, boxes[-1].end - size) if boxes else 0
        structure = Structure(missing_bytes=missing, has_index=moov is not None and moov.end <= size)
    else:
        structure = Structure(missing_bytes=0, has_index=True)
    file.seek(0)
    return structure


def _missing_of_matroska(file: BinaryIO, size: int) -> int:
    header_size, header_content = _vint(file, 4)
    if header_size is None:
        return 0
    segment = header_content + header_size
    file.seek(segment)
    if file.read(4) != _SEGMENT:
        return 0
    segment_size, content = _vint(file, segment + 4)
    return 0 if segment_size is None else max(0, content + segment_size - size)


def _vint(file: BinaryIO, offset: int) -> tuple[int | None, int]:
    """Read an EBML length (RFC 8794, section 4); None where it is unknown, as in live recordings."""
    file.seek(offset)
    head = file.read(8)
    if not head or head[0] == 0:
        return None, offset
    length = 9 - head[0].bit_length()
    value = int.from_bytes(head[:length], "big") & ((1 << (7 * length)) - 1)
    unknown = len(head) < length or value == (1 << (7 * length)) - 1
    return (None if unknown else value), offset + length
