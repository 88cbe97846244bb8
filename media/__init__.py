"""Clip files and frames in memory; knows nothing of models."""

from foresight.media.errors import ClipError
from foresight.media.frames import FrameBatch
from foresight.media.limits import LOCAL, UNTRUSTED, ClipLimits
from foresight.media.reader import ClipInfo, ClipReader
from foresight.media.writer import ClipWriter

__all__ = [
    "LOCAL",
    "UNTRUSTED",
    "ClipError",
    "ClipInfo",
    "ClipLimits",
    "ClipReader",
    "ClipWriter",
    "FrameBatch",
]
