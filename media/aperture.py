"""Odd frame sizes in files whose coded frames must be even: the clean aperture of mp4 (ISO/IEC 14496-12,
`clap`).

Video that every browser plays has its chroma at half size, so an odd frame is coded with one more column or
row. The clean aperture says which part is the picture; players that do not know it show the repeated edge
pixel.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

from foresight.media.boxes import Box, find_box, find_index, walk_boxes

_VISUAL_ENTRY_HEADER = 86
_CLAP = struct.Struct(">8i")


def odd_aperture(file: BinaryIO, size: int, coded_width: int, coded_height: int) -> tuple[int, int]:
    """Return the (width, height) that a clean aperture gives to a frame which was padded to even sizes.

    Only one padded column on the right and one padded row below are taken off, which is what
    `foresight.media` writes; other apertures are left alone, as browsers do. The file is left at its
    beginning.
    """
    aperture = _read_aperture(file, size)
    file.seek(0)
    allowed = {(coded_width - right, coded_height - below) for right in (0, 1) for below in (0, 1)}
    return aperture if aperture in allowed else (coded_width, coded_height)


def _read_aperture(file: BinaryIO, size: int) -> tuple[int, int] | None:
    moov = find_index(file, size)
    found = _sample_entry(file, moov) if moov is not None else None
    if found is None:
        return None
    clap = find_box(file, found[1].start + _VISUAL_ENTRY_HEADER, found[1].end, b"clap")
    if clap is None or clap.end - clap.content != _CLAP.size:
        return None
    file.seek(clap.content)
    width, width_unit, height, height_unit, *_ = _CLAP.unpack(file.read(_CLAP.size))
    return (width, height) if width_unit == height_unit == 1 else None


def write_aperture(
    file: BinaryIO, size: int, width: int, height: int, coded_width: int, coded_height: int
) -> bool:
    """Signal the frame size `width` x `height` inside a finished mp4 of padded frames; False where there is
    no room.

    The space comes from the metadata box at the end of the index, so that no byte of the media moves.
    """
    moov = find_index(file, size)
    found = _sample_entry(file, moov) if moov is not None else None
    udta = find_box(file, moov.content, moov.end, b"udta") if moov is not None else None
    clap_size = 8 + _CLAP.size
    if found is None or udta is None or moov is None or udta.end != moov.end:
        return False
    left_over = udta.end - udta.start - clap_size
    if left_over < 8:
        return False
    path, entry = found
    offsets = (width - coded_width, 2, height - coded_height, 2)
    clap = struct.pack(">I4s", clap_size, b"clap") + _CLAP.pack(width, 1, height, 1, *offsets)
    file.seek(entry.end)
    moved = file.read(udta.start - entry.end)
    file.seek(entry.end)
    file.write(clap + moved + struct.pack(">I4s", left_over, b"free") + bytes(left_over - 8))
    for box in (*path[1:], entry):
        file.seek(box.start)
        file.write(struct.pack(">I", box.end - box.start + clap_size))
    return True


def _sample_entry(file: BinaryIO, moov: Box) -> tuple[list[Box], Box] | None:
    """Find the first visual sample entry: the boxes that hold it, outermost first, and the entry itself."""
    for trak in walk_boxes(file, moov.content, moov.end):
        path = [moov, trak]
        for kind in (b"mdia", b"minf", b"stbl", b"stsd"):
            inner = find_box(file, path[-1].content, path[-1].end, kind) if trak.kind == b"trak" else None
            if inner is None:
                break
            path.append(inner)
        else:
            minf, stsd = path[3], path[5]
            entry = next(walk_boxes(file, stsd.content + 8, stsd.end), None)
            if entry is not None and find_box(file, minf.content, minf.end, b"vmhd") is not None:
                return path, entry
    return None
