"""From a checkpoint to an engine: every target that can be made, each held against eager, in one file."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

import torch

from foresight import __version__
from foresight.adapters import EngineBucket, EngineManifest, MemberSource, write_engine
from foresight.export.checkpoint import read_checkpoint
from foresight.export.errors import ExportError
from foresight.export.grids import parse_bucket, stack_bucket
from foresight.export.options import TARGETS, ExportOptions
from foresight.export.request import Request
from foresight.export.targets import LeftOut, target_makers
from foresight.models.stack_file import load_config

__all__ = ["ExportResult", "export_engine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """The engine that was written, and what was left out with the reason, by target or member."""

    manifest: EngineManifest
    left_out: dict[str, str]


def export_engine(options: ExportOptions, *, say: Callable[[str], None] = lambda _: None) -> ExportResult:
    """Compile a checkpoint; `say` gets one line for every member.

    Targets that were not asked for by name are left out where this machine lacks something, and so is every
    member that cannot be run or is out of tolerance. Raises ValueError (ExportError, AdapterError, EngineError)
    in one line for what the user can mend: a named target that cannot be made, cannot be run or is out of
    tolerance among them. Nothing is written then.
    """
    if options.output.exists() and not options.overwrite:
        raise ExportError(f"{options.output}: exists, use --overwrite to replace it")
    buckets = _buckets(options)
    checkpoint = read_checkpoint(options.checkpoint)
    makers = target_makers()
    left_out: dict[str, str] = {}
    members = [checkpoint.weights]
    with tempfile.TemporaryDirectory(prefix="foresight-export-") as folder:
        request = Request(adapter=checkpoint.adapter, buckets=buckets, options=options, folder=Path(folder))
        for name in TARGETS:
            if options.targets and name not in options.targets:
                continue
            reason = makers[name].lacking(options)
            if reason is not None:
                left_out[name] = reason
                continue
            for each in makers[name].make(request):
                if isinstance(each, LeftOut):
                    left_out[each.name] = each.reason
                elif _within(each, say):
                    members.append(each)
                else:
                    left_out[each.name] = _distance(each)
        for what, why in left_out.items():
            if options.targets:
                raise ExportError(f"{what}: cannot be made here, {why}")
            say(f"{what}: left out, {why}")
        manifest = write_engine(
            options.output,
            members,
            adapter=checkpoint.adapter.config,
            stack_fingerprint=checkpoint.stack_fingerprint,
            buckets=buckets,
            quality=checkpoint.metrics,
            versions=_versions(),
        )
    return ExportResult(manifest=manifest, left_out=left_out)


def _buckets(options: ExportOptions) -> list[EngineBucket]:
    if options.buckets:
        return sorted({parse_bucket(text) for text in options.buckets})
    return [stack_bucket(load_config(options.stack))]


def _within(member: MemberSource, say: Callable[[str], None]) -> bool:
    if member.parity is None or not member.parity.holds:
        return False
    say(
        f"{member.name}: {member.dtype}, differs from eager by {member.parity.max_error:.2e}, "
        f"{member.parity.bound:.2e} allowed"
    )
    return True


def _distance(member: MemberSource) -> str:
    if member.parity is None:
        return "its parity with eager was not measured"
    return f"it differs from eager by {member.parity.max_error:.2e}, {member.parity.bound:.2e} allowed"


def _versions() -> dict[str, str]:
    versions = {"foresight": __version__, "python": platform.python_version(), "torch": torch.__version__}
    for name in ("onnx", "onnxruntime", "triton", "tensorrt"):
        if util.find_spec(name) is not None:
            try:
                versions[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                versions[name] = "unknown"
    return versions
