"""`application/x-foresight-frames`: the byte layout of streamed frames, written and read.

A stream is a sequence of records. Numbers are big-endian.

    offset  size  every record
    0       4     length of what follows these four bytes, unsigned
    4       1     kind: 1 a frame, 2 the end, 3 an error
            then of a frame
    5       4     index of the frame in the clip, unsigned, from 0
    9       8     its time in seconds from the clip's first frame, IEEE 754 double
    17      ...   the frame, a JPEG file
            then of the end and of an error
    5       ...   a JSON object in UTF-8: what the request cost, or what went wrong

The last record is the end or an error; a stream without either was cut.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "END",
    "ERROR",
    "FRAME",
    "FRAMES_TYPE",
    "FrameRecord",
    "encode_jpeg",
    "frame_record",
    "json_record",
    "read_records",
]

FRAMES_TYPE = "application/x-foresight-frames"
FRAME, END, ERROR = 1, 2, 3
_PREFIX, _FRAME = struct.Struct(">IB"), struct.Struct(">Id")
_MAX_RECORD = 2**26
_JPEG_QUALITY = 92


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameRecord:
    """One record; `index`, `seconds` and `jpeg` belong to a frame, `message` to an end or an error."""

    kind: int
    index: int = 0
    seconds: float = 0.0
    jpeg: bytes = b""
    message: Mapping[str, Any] | None = None


def encode_jpeg(frame: NDArray[np.uint8]) -> bytes:
    """A frame [H, W, 3] as a JPEG file, colour at full resolution."""
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def frame_record(index: int, seconds: float, jpeg: bytes) -> bytes:
    """The bytes of a frame's record."""
    length = 1 + _FRAME.size + len(jpeg)
    return _PREFIX.pack(length, FRAME) + _FRAME.pack(index, seconds) + jpeg


def json_record(kind: int, content: Mapping[str, Any]) -> bytes:
    """The bytes of an end's or an error's record."""
    text = json.dumps(content).encode()
    return _PREFIX.pack(1 + len(text), kind) + text


def read_records(stream: BinaryIO) -> Iterator[FrameRecord]:
    """Read a stream to its end or error; raises ValueError where it is cut or is not such a stream."""
    while True:
        length, kind = _PREFIX.unpack(_read(stream, _PREFIX.size))
        if not 1 <= length <= _MAX_RECORD or kind not in (FRAME, END, ERROR):
            raise ValueError(f"record of kind {kind} and {length} bytes: is not {FRAMES_TYPE}")
        content = _read(stream, length - 1)
        if kind != FRAME:
            yield FrameRecord(kind=kind, message=json.loads(content))
            return
        index, seconds = _FRAME.unpack_from(content)
        yield FrameRecord(kind=kind, index=index, seconds=seconds, jpeg=content[_FRAME.size :])


def _read(stream: BinaryIO, size: int) -> bytes:
    content = b""
    while len(content) < size:
        part = stream.read(size - len(content))
        if not part:
            raise ValueError("the stream of frames is cut: it has neither an end nor an error")
        content += part
    return content
