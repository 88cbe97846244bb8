"""A file that appears under its name only once it is complete, and several that appear together."""

from __future__ import annotations

import os
import secrets
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from foresight.media.errors import ClipError
from foresight.media.source import printable_name


class PendingFile:
    """A new file under a temporary name in the folder of its final one; committed by a rename, or discarded.

    It is also discarded where it is forgotten, or the interpreter ends.

    Args:
        path: the final name.
        overwrite: whether a file of that name may be replaced.

    Raises:
        ClipError: the name is taken, the folder is missing or cannot be written.
    """

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        self.path = path
        self._name = printable_name(str(path))
        self._overwrite = overwrite
        self._refuse_taken()
        self.temporary = self._hidden("part")
        self._create()
        self._discard = weakref.finalize(self, self.temporary.unlink, missing_ok=True)

    def commit(self) -> None:
        """Give the file its final name.

        Raises:
            ClipError: the name has been taken in the meantime, or the rename fails; the file is then
                discarded.
        """
        try:
            self._refuse_taken()
            with self._renaming():
                self.temporary.replace(self.path)
        finally:
            self._discard()

    def set_aside(self) -> Path | None:
        """Rename the file that is to be replaced, if there is one; returns where it lies now.

        Raises:
            ClipError: the file must not be replaced, or the rename fails.
        """
        self._refuse_taken()
        if not os.path.lexists(self.path):
            return None
        with self._renaming():
            return self.path.rename(self._hidden("old"))

    def discard(self) -> None:
        """Remove the temporary file; nothing of that name stays behind."""
        self._discard()

    def _hidden(self, suffix: str) -> Path:
        return self.path.absolute().parent / f".{self.path.name[:80]}.{secrets.token_hex(6)}.{suffix}"

    @contextmanager
    def _renaming(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ClipError(
                f"{self._name}: cannot be written ({error.strerror}); choose another folder"
            ) from error

    def _refuse_taken(self) -> None:
        if self.path.is_dir():
            raise ClipError(f"{self._name}: is a directory; give the name of an mp4 file")
        if not self._overwrite and os.path.lexists(self.path):
            raise ClipError(
                f"{self._name}: exists already; choose another name or allow it to be overwritten"
            )

    def _create(self) -> None:
        try:
            with self.temporary.open("xb"):
                return
        except (FileNotFoundError, NotADirectoryError):
            folder = printable_name(str(self.path.parent))
            raise ClipError(f"{self._name}: there is no folder {folder}; create it first") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ClipError(f"{self._name}: cannot be written ({reason}); choose another folder") from error


def commit_all(files: Sequence[PendingFile]) -> None:
    """Give all files their final names or, where one rename fails, none; what they replace is then put back.

    Raises:
        ClipError: as `PendingFile.commit`; the files are then to be discarded.
    """
    if not files:
        return
    *others, last = files
    kept: list[Path] = []
    with ExitStack() as undo:
        for file in others:
            old = file.set_aside()
            if old is not None:
                kept.append(old)
                undo.callback(old.replace, file.path)
            file.commit()
            if old is None:
                undo.callback(file.path.unlink, missing_ok=True)
        # After the last rename nothing can fail any more, so that it may replace the old file at once.
        last.commit()
        undo.pop_all()
    for old in kept:
        # Everything has its name by now; an old file that stays is no failure.
        with suppress(OSError):
            old.unlink()
