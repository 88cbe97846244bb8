"""A file that appears under its name only once it is complete."""

from __future__ import annotations

import os
import secrets
import weakref
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
        self._path = path
        self._name = printable_name(str(path))
        self._overwrite = overwrite
        self._refuse_taken()
        self.temporary = path.absolute().parent / f".{path.name[:80]}.{secrets.token_hex(6)}.part"
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
            self.temporary.replace(self._path)
        except OSError as error:
            raise ClipError(
                f"{self._name}: cannot be written ({error.strerror}); choose another folder"
            ) from error
        finally:
            self._discard()

    def discard(self) -> None:
        """Remove the temporary file; nothing of that name stays behind."""
        self._discard()

    def _refuse_taken(self) -> None:
        if self._path.is_dir():
            raise ClipError(f"{self._name}: is a directory; give the name of an mp4 file")
        if not self._overwrite and os.path.lexists(self._path):
            raise ClipError(
                f"{self._name}: exists already; choose another name or allow it to be overwritten"
            )

    def _create(self) -> None:
        try:
            with self.temporary.open("xb"):
                return
        except (FileNotFoundError, NotADirectoryError):
            folder = printable_name(str(self._path.parent))
            raise ClipError(f"{self._name}: there is no folder {folder}; create it first") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ClipError(f"{self._name}: cannot be written ({reason}); choose another folder") from error
