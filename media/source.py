"""Where the bytes of a clip come from: a regular file or bytes in memory, never a URL.

The decoder is only ever given a Python file object, so that none of its own protocols (http, concat, file) is
involved.
"""

from __future__ import annotations

import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from foresight.media.errors import ClipError
from foresight.media.limits import ClipLimits

_PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"v=0\r\n", b"v=0\n", b"<?xml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An open clip: its bytes, how many there are, and what to call it in messages."""

    file: BinaryIO
    size: int
    name: str


def printable_name(name: str) -> str:
    """Give a name that fits on one line of a message, escaped where it holds control characters."""
    return name if name.isprintable() else ascii(name)


def open_source(source: Path | bytes, limits: ClipLimits, name: str | None = None) -> Source:
    """Open a clip's bytes after checking that they are a regular, non-empty file within the limit of bytes.

    Raises:
        ClipError: the file is missing, a directory, no regular file, unreadable, empty, too large or a
            playlist.
    """
    if isinstance(source, bytes):
        shown = printable_name(name or "clip")
        opened = Source(file=io.BytesIO(source), size=len(source), name=shown)
    else:
        shown = printable_name(name or str(source))
        opened = _open_file(Path(source), shown)
    try:
        _check(opened, limits)
    except BaseException:
        opened.file.close()
        raise
    return opened


def _open_file(path: Path, shown: str) -> Source:
    try:
        # Opening a pipe would wait for its writer, so the kind of file is asked first.
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ClipError(f"{shown}: is a directory; give one video file")
        if not stat.S_ISREG(mode):
            raise ClipError(f"{shown}: is not a regular file; save the clip to a file first")
        file = path.open("rb")
        return Source(file=file, size=os.fstat(file.fileno()).st_size, name=shown)
    except FileNotFoundError:
        raise ClipError(f"{shown}: no such file; check the path") from None
    except (OSError, ValueError) as error:
        if isinstance(error, ClipError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise ClipError(f"{shown}: cannot be opened ({reason}); give a readable video file") from error


def _check(source: Source, limits: ClipLimits) -> None:
    if source.size == 0:
        raise ClipError(f"{source.name}: is empty; give a video file (mp4, mov, webm or mkv)")
    if limits.max_bytes is not None and source.size > limits.max_bytes:
        allowed = (
            f"{limits.max_bytes / 2**20:.0f} MiB"
            if limits.max_bytes >= 2**20
            else f"{limits.max_bytes} bytes"
        )
        raise ClipError(f"{source.name}: has {source.size} bytes; at most {allowed} are accepted")
    head = source.file.read(16).lstrip(b"\xef\xbb\xbf \t\r\n")
    source.file.seek(0)
    if head.startswith(_PLAYLISTS):
        raise ClipError(f"{source.name}: is a playlist, not a video; give the video file itself")
