"""What an engine says of itself: which adapter, for which stack, which members, checked how."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from foresight.adapters.config import AdapterConfig
from foresight.adapters.engine_error import EngineError

__all__ = [
    "ENGINE_FORMAT_VERSION",
    "MANIFEST",
    "MAX_MANIFEST_BYTES",
    "WEIGHTS",
    "EngineBucket",
    "EngineManifest",
    "EngineMember",
    "EngineParity",
    "EngineTarget",
    "MemberKind",
]

ENGINE_FORMAT_VERSION = 1
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
MAX_MANIFEST_BYTES = 2**20

MemberKind = Literal["weights", "onnx", "aoti", "tensorrt"]

_FORMAT = "foresight-engine"
_LARGEST_SIZE = 2**15
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class EngineBucket:
    """A shape that the engine was made for: clips at once, and the tokens of each encoder.

    Fewer tokens of the VLM are padded up to it. Raises EngineError for numbers below 1.
    """

    batch: int
    vlm_tokens: int
    dino_tokens: int

    def __post_init__(self) -> None:
        for each in fields(self):
            _check_whole(f"bucket's {each.name}", getattr(self, each.name), least=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTarget:
    """Where a member runs.

    Args:
        kind: what reads it.
        device: "any", "cpu" or "cuda".
        architecture: the machine ("x86_64") or GPU ("sm_90") whose native code it holds; empty for none.
        capability: the vector extensions that this code uses on a CPU ("avx2 fma"); empty for none.
        runtime: the version of torch ("2.14") or TensorRT ("11.1.0") that it needs; empty for any.
        bucket: the only shape that it takes; None for any.
        version_compatible: a TensorRT plan that other versions of its runtime read, the lean one too.
    """

    kind: MemberKind
    device: Literal["any", "cpu", "cuda"] = "any"
    architecture: str = ""
    capability: str = ""
    runtime: str = ""
    bucket: EngineBucket | None = None
    version_compatible: bool = False

    def __post_init__(self) -> None:
        if self.kind not in get_args(MemberKind):
            raise EngineError(f"target kind {self.kind!r}: must be one of {', '.join(get_args(MemberKind))}")
        if self.device not in ("any", "cpu", "cuda"):
            raise EngineError(f"target device {self.device!r}: must be any, cpu or cuda")
        for name in ("architecture", "capability", "runtime"):
            _check_text(f"target's {name}", getattr(self, name))
        if not isinstance(self.version_compatible, bool):
            raise EngineError(
                f"target's version_compatible {self.version_compatible!r}: must be true or false"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineParity:
    """How far a member's outputs lay from eager fp32's at export: the largest difference and its bound."""

    max_error: float
    bound: float
    cases: int

    def __post_init__(self) -> None:
        for name in ("max_error", "bound"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or value < 0:
                raise EngineError(f"parity's {name} {value!r}: must be a number of at least 0")
        _check_whole("parity's cases", self.cases, least=1)

    @property
    def holds(self) -> bool:
        """Whether the difference is within its bound."""
        return self.max_error <= self.bound


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMember:
    """One file inside an engine; `parity` is None for the weights, which are what the rest is held against."""

    name: str
    size: int
    sha256: str
    dtype: str
    target: EngineTarget
    parity: EngineParity | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name) or self.name == MANIFEST:
            raise EngineError(f"member name {self.name!r}: must be a plain file name in lower case")
        _check_whole(f"{self.name}: size", self.size, least=1)
        if not isinstance(self.sha256, str) or not _SHA256.fullmatch(self.sha256):
            raise EngineError(f"{self.name}: sha256 {self.sha256!r} must be 64 hexadecimal digits")
        if self.dtype not in _DTYPES:
            raise EngineError(f"{self.name}: dtype {self.dtype!r} must be one of {', '.join(_DTYPES)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineManifest:
    """All that is known of an engine before any of its members is opened.

    `quality` holds the checkpoint's own figures, `versions` the libraries that built the engine. Raises
    EngineError for members that are doubled, and without the weights.
    """

    adapter: AdapterConfig
    stack_fingerprint: str
    buckets: tuple[EngineBucket, ...]
    members: tuple[EngineMember, ...]
    quality: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_text("stack_fingerprint", self.stack_fingerprint)
        names = [member.name for member in self.members]
        for name in names:
            if names.count(name) > 1:
                raise EngineError(f"member {name}: is listed {names.count(name)} times")
        if WEIGHTS not in names:
            raise EngineError(f"member {WEIGHTS}: is missing, every engine needs it")
        if not self.buckets:
            raise EngineError("buckets (): an engine needs at least one")

    def member(self, name: str) -> EngineMember:
        """The member of that name; raises EngineError where there is none."""
        for member in self.members:
            if member.name == name:
                return member
        raise EngineError(f"member {name!r}: the engine has {', '.join(each.name for each in self.members)}")

    def to_json(self) -> str:
        """The manifest as JSON text; raises EngineError for figures that JSON cannot hold."""
        content = {"format": _FORMAT, "format_version": ENGINE_FORMAT_VERSION, **asdict(self)}
        try:
            return json.dumps(content, indent=1, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            raise EngineError(f"manifest: cannot be written as JSON ({error})") from error

    @classmethod
    def from_json(cls, text: bytes) -> EngineManifest:
        """Read a manifest; unknown keys, doubled keys and values of a wrong type raise EngineError."""
        content = _parse(text)
        if content.pop("format", None) != _FORMAT:
            raise EngineError(f"manifest: format must be {_FORMAT!r}")
        version = content.pop("format_version", None)
        if version != ENGINE_FORMAT_VERSION or isinstance(version, bool):
            raise EngineError(
                f"manifest: format version {version!r} is unknown, this version reads {ENGINE_FORMAT_VERSION}"
            )
        _check_keys("manifest", content, EngineManifest)
        for name in ("quality", "versions"):
            if not isinstance(content[name], dict):
                raise EngineError(f"manifest: {name} must be a JSON object")
        return cls(
            adapter=_adapter(content["adapter"]),
            stack_fingerprint=content["stack_fingerprint"],
            buckets=tuple(_record("bucket", each, EngineBucket) for each in _list(content, "buckets")),
            members=tuple(_member(each) for each in _list(content, "members")),
            quality=content["quality"],
            versions=content["versions"],
        )


def _parse(text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except EngineError:
        raise
    # Nesting without end exhausts the parser's stack.
    except (ValueError, RecursionError) as error:
        raise EngineError(f"manifest: is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise EngineError("manifest: must be a JSON object")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise EngineError("manifest: a key stands twice in one object")
    return content


def _refuse_constant(name: str) -> None:
    raise EngineError(f"manifest: {name} is not a JSON number")


def _adapter(values: object) -> AdapterConfig:
    content = _check_keys("adapter", values, AdapterConfig)
    grids: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in content.items()
    }
    for name, value in content.items():
        # The adapter is built before its weights are compared with it: a claim must not exhaust the memory.
        if isinstance(value, int) and value > _LARGEST_SIZE:
            raise EngineError(f"manifest: adapter: {name} {value} is larger than {_LARGEST_SIZE}")
    try:
        return AdapterConfig(**grids)
    except (ValueError, TypeError) as error:
        raise EngineError(f"manifest: adapter: {error}") from error


def _member(values: object) -> EngineMember:
    content = dict(_check_keys("member", values, EngineMember))
    target = dict(_check_keys("target", content["target"], EngineTarget))
    if target["bucket"] is not None:
        target["bucket"] = _record("bucket", target["bucket"], EngineBucket)
    content["target"] = EngineTarget(**target)
    if content["parity"] is not None:
        content["parity"] = _record("parity", content["parity"], EngineParity)
    return EngineMember(**content)


def _record(name: str, values: object, kind: type[Any]) -> Any:
    return kind(**_check_keys(name, values, kind))


def _list(content: Mapping[str, Any], name: str) -> list[Any]:
    values = content[name]
    if not isinstance(values, list):
        raise EngineError(f"manifest: {name} must be a JSON list")
    return values


def _check_keys(name: str, content: object, kind: type[Any]) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise EngineError(f"manifest: {name} must be a JSON object")
    expected = {each.name for each in fields(kind)}
    unknown, missing = sorted(content.keys() - expected), sorted(expected - content.keys())
    if unknown:
        raise EngineError(f"manifest: unknown key {unknown[0]!r} in {name}")
    if missing:
        raise EngineError(f"manifest: key {missing[0]!r} is missing in {name}")
    return content


def _check_whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise EngineError(f"{name} {value!r}: must be a whole number of at least {least}")


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str) or not value.isprintable() or len(value) > 1024:
        raise EngineError(f"{name} {value!r}: must be one line of at most 1024 characters")
