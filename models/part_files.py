"""Which files a part of a stack consists of; knows nothing of what is in them."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Literal

from foresight.models.errors import StackError
from foresight.models.original_names import vision_tower_name
from foresight.models.repository import Location
from foresight.models.tensors import weight_files

__all__ = ["PARTS", "Part", "PartFiles"]

Part = Literal["vlm", "dino", "transformer", "vae"]
PARTS: tuple[Part, ...] = ("vlm", "dino", "transformer", "vae")


class PartFiles:
    """The files of one part, fetched as they are asked for; raises StackError for one that is missing.

    A vision tower lies alone or inside a whole checkpoint, LTX-Video's parts in a folder of diffusers or in
    Lightricks' single file, which has no `config` beside it.
    """

    def __init__(self, part: Part, location: Location) -> None:
        self._repository = location.repository
        # Only LTX-Video comes as a single file.
        self._file = location.file if part in ("transformer", "vae") else None
        self._rename = vision_tower_name if part == "vlm" else _same_name
        self._stem = "model"
        prefix = ""
        if part in ("transformer", "vae"):
            if self._file is None and self._repository.find(f"{part}/config.json", optional=True):
                prefix = f"{part}/"
            self._stem = f"{prefix}diffusion_pytorch_model"
        self.config = None if self._file else self._find(f"{prefix}config.json")

    @cached_property
    def weights(self) -> tuple[Path, ...]:
        """Files of tensors; not looked for before a wrong configuration can be refused."""
        if self._file is not None:
            return (self._find(self._file),)
        return weight_files(self._repository, self._stem, self._rename)

    @property
    def all(self) -> tuple[Path, ...]:
        """The configuration first, then the weights."""
        return self.weights if self.config is None else (self.config, *self.weights)

    def _find(self, name: str) -> Path:
        path = self._repository.find(name)
        if path is None:
            raise StackError(f"{self._repository}: has no {name}")
        return path


def _same_name(name: str) -> str | None:
    return name
