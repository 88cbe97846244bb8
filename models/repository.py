"""Where the files of one model are: a local folder or a repository of the Hugging Face hub, asked alike."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from foresight.models.errors import StackError

__all__ = ["Folder", "HubRepository", "Location", "Repository", "locate"]

_HUB_ENTRY = re.compile(
    r"(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<revision>\w[\w.-]*))?(?:/(?P<file>[\w./-]+\.safetensors))?"
)


class Repository(Protocol):
    """Files by name."""

    def find(self, name: str, *, optional: bool = False) -> Path | None:
        """Return the local path of a file, fetched if need be, or None where there is no such file.

        An optional file that cannot be asked for counts as missing.
        """

    def __str__(self) -> str:
        """Name the repository in a message."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A local folder."""

    path: Path

    def find(self, name: str, *, optional: bool = False) -> Path | None:  # noqa: ARG002 - the protocol's
        """Return the path of a file in the folder, or None."""
        path = self.path / name
        return path if path.is_file() else None

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class HubRepository:
    """A repository of the Hugging Face hub; files come from its local cache or are downloaded into it.

    `revision` is a commit, a tag or a branch; by default whatever the hub calls main today.
    """

    id: str
    revision: str | None = None

    def find(self, name: str, *, optional: bool = False) -> Path | None:
        """Return the path of a file, or None where the repository has none of that name.

        Raises StackError where the hub cannot be asked for a file that is not optional.
        """
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

        try:
            return Path(hf_hub_download(self.id, name, revision=self.revision))
        except LocalEntryNotFoundError as error:
            if optional:
                return None
            raise self._unreachable(name, error) from error
        except EntryNotFoundError:
            return None
        except (HfHubHTTPError, OSError) as error:
            raise self._unreachable(name, error) from error

    def _unreachable(self, name: str, error: Exception) -> StackError:
        reason = str(error).strip().splitlines()[0]
        return StackError(f"{self}: cannot fetch {name} ({reason}); a stack.json may name a folder instead")

    def __str__(self) -> str:
        return f"{self.id}@{self.revision}" if self.revision else self.id


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """A repository, and the one file in it where an entry names a single-file checkpoint."""

    repository: Repository
    file: str | None = None

    def __str__(self) -> str:
        return f"{self.repository}/{self.file}" if self.file else str(self.repository)


def locate(entry: str, root: Path) -> Location:
    """Resolve an entry of a stack: a path, absolute or relative to the stack's folder, or a hub id.

    A hub id may carry a revision and be followed by the name of a single file, as in
    `owner/name@revision/file.safetensors`.
    Raises StackError for an entry that is none of these.
    """
    path = root / entry
    if path.is_dir():
        return Location(repository=Folder(path))
    if path.is_file():
        return Location(repository=Folder(path.parent), file=path.name)
    if (match := _HUB_ENTRY.fullmatch(entry)) and not entry.startswith("."):
        return Location(repository=HubRepository(match["id"], match["revision"]), file=match["file"])
    raise StackError(
        f"stack folder {root}: has no {entry}; "
        "must be a folder there, a path or a hub id (owner/name or owner/name@revision)"
    )
