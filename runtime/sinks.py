"""The two forms of an answer: records of JPEG frames as they are made, or one mp4 at the end."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

from foresight.media import ClipError, ClipWriter, FrameBatch
from foresight.runtime.frame_records import encode_jpeg, frame_record
from foresight.runtime.outbox import Outbox

__all__ = ["FrameSink", "Mp4Sink"]


class FrameSink:
    """Encodes every frame and puts the records of a chunk into the outbox at once."""

    def __init__(self, outbox: Outbox[bytes]) -> None:
        self._outbox = outbox
        self._count = 0

    def write(self, batch: FrameBatch) -> None:
        """Encode the frames; raises ClientStalledError where nobody reads them."""
        records = b"".join(
            frame_record(self._count + offset, float(seconds), encode_jpeg(frame))
            for offset, (frame, seconds) in enumerate(zip(batch.frames, batch.timestamps, strict=True))
        )
        self._count += len(batch)
        self._outbox.put(records, len(records))

    def finish(self, error: Exception | None) -> None:
        """Pass the end on."""
        self._outbox.finish(error)


class Mp4Sink:
    """Writes the file that `foresight-reconstruct` writes, without sound, and hands it over open and nameless."""

    def __init__(self, outbox: Outbox[BinaryIO], *, fps: Fraction) -> None:
        self._outbox, self._fps = outbox, fps
        self._folder = tempfile.TemporaryDirectory(prefix="foresight-")
        self._path = Path(self._folder.name) / "out.mp4"
        self._writer: ClipWriter | None = None

    def write(self, batch: FrameBatch) -> None:
        """Encode the frames."""
        with _own_file():
            if self._writer is None:
                self._writer = ClipWriter(self._path, width=batch.width, height=batch.height, fps=self._fps)
            self._writer.write(batch)

    def finish(self, error: Exception | None) -> None:
        """Finish the file and pass it on, or remove it."""
        try:
            if error is None and self._writer is not None:
                with _own_file():
                    self._writer.close()
                self._hand_over(self._path.open("rb"))
        except Exception as failure:  # raised again where the answer is waited for
            error = failure
        finally:
            if self._writer is not None:
                self._writer.abort()
            self._folder.cleanup()
        self._outbox.finish(error)

    def _hand_over(self, file: BinaryIO) -> None:
        try:
            self._outbox.put(file, 0)
        except BaseException:
            file.close()
            raise


@contextmanager
def _own_file() -> Iterator[None]:
    # Where the server's own disk is full, no other clip would help.
    try:
        yield
    except ClipError as error:
        raise OSError(str(error)) from error
