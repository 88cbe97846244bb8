"""The checkpoint that is compiled: an adapter in fp32, and what its folder says of its making."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from foresight.adapters import WEIGHTS, Adapter, EngineTarget, MemberSource, load_adapter

__all__ = ["Checkpoint", "read_checkpoint"]

_NAMES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint:
    """An adapter on the CPU in fp32, the stack that it was trained on, its figures, and its weights' file."""

    adapter: Adapter
    stack_fingerprint: str
    metrics: Mapping[str, Any]
    weights: MemberSource


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a folder that `save_adapter` wrote; raises AdapterError as `load_adapter` does."""
    adapter = load_adapter(folder)
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    path = folder / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        dtypes = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    # The widest of them, should there be several.
    dtype = max((_NAMES.get(each, "float32") for each in dtypes), key=len, default="float32")
    weights = MemberSource(name=WEIGHTS, path=path, dtype=dtype, target=EngineTarget(kind="weights"))
    return Checkpoint(
        adapter=adapter,
        stack_fingerprint=content["stack_fingerprint"],
        metrics=content["metrics"],
        weights=weights,
    )
