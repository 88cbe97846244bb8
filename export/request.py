"""One export: which adapter, for which shapes, with which options, and where the files go meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from foresight.adapters import Adapter, EngineBucket
from foresight.export.options import ExportOptions

__all__ = ["Request"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Request:
    """What to compile: an adapter in fp32 on the CPU, for which shapes, and the folder for the files."""

    adapter: Adapter
    buckets: Sequence[EngineBucket]
    options: ExportOptions
    folder: Path

    @property
    def gpu_dtype(self) -> torch.dtype:
        """The type that GPUs compute in."""
        return {"bfloat16": torch.bfloat16, "float16": torch.float16}[self.options.gpu_dtype]

    def name(self, stem: str, bucket: EngineBucket, suffix: str) -> str:
        """A member's name; the bucket is in it where there are several."""
        shape = (
            f"-b{bucket.batch}-v{bucket.vlm_tokens}-d{bucket.dino_tokens}" if len(self.buckets) > 1 else ""
        )
        return f"{stem}{shape}{suffix}"
