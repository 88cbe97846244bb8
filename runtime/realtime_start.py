"""The first message of a live stream: what its frames are and what is asked for, checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from foresight.runtime.config import PipelineConfig
from foresight.runtime.decoding import refuse_long_sides
from foresight.runtime.engine_models import EngineModels
from foresight.runtime.refusals import RefusedError
from foresight.runtime.service_state import RequestCeilings
from foresight.runtime.video_form import request_config

__all__ = ["RealtimeStart", "read_control"]

_KEYS = ("type", "format", "width", "height", "fps", "mode", "steps", "seed", "size")
_MAX_CONTROL = 4096
_MAX_FPS = 240


@dataclass(frozen=True, slots=True, kw_only=True)
class RealtimeStart:
    """Frames as JPEG or PNG pictures, or raw RGB of `raw_size` (height, width); `fps` gives their times."""

    config: PipelineConfig
    fps: Fraction
    raw_size: tuple[int, int] | None

    @classmethod
    def parse(
        cls, content: Mapping[str, Any], models: EngineModels, limits: RequestCeilings
    ) -> RealtimeStart:
        """Check a start message; raises RefusedError or ClipError, one line, for anything not as documented."""
        if content.get("type") != "start":
            raise _refusal('the first message must be {"type": "start", ...}')
        if unknown := sorted(set(content) - set(_KEYS)):
            raise _refusal(f"start: unknown key {unknown[0][:40]!r}; known are {', '.join(_KEYS)}")
        config = request_config(content, stack=models.config, modes=models.modes, max_steps=limits.max_steps)
        return cls(config=config, fps=_fps(content), raw_size=_raw_size(content, limits))


def read_control(text: str) -> dict[str, Any]:
    """A control message: a small JSON object; raises RefusedError for anything else."""
    try:
        content = json.loads(text) if len(text) <= _MAX_CONTROL else None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise _refusal(f"control messages are JSON objects of at most {_MAX_CONTROL} characters")
    return content


def _fps(content: Mapping[str, Any]) -> Fraction:
    fps = content.get("fps", 24)
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0.1 <= fps <= _MAX_FPS:
        raise _refusal(f"fps {str(fps)[:40]}: must be a number from 0.1 to {_MAX_FPS}")
    return Fraction(fps).limit_denominator(1001)


def _raw_size(content: Mapping[str, Any], limits: RequestCeilings) -> tuple[int, int] | None:
    kind = content.get("format", "jpeg")
    if kind not in ("jpeg", "png", "raw"):
        raise _refusal(f"format {str(kind)[:40]!r}: must be jpeg, png or raw")
    if kind != "raw":
        return None
    sides = [content.get(name) for name in ("height", "width")]
    if any(not isinstance(side, int) or isinstance(side, bool) or side < 1 for side in sides):
        raise _refusal("raw frames need width and height, whole numbers of pixels")
    height, width = (int(str(side)) for side in sides)
    if limits.clip.max_pixels is not None and height * width > limits.clip.max_pixels:
        raise _refusal(f"frames of {width}x{height}: exceed the limit of {limits.clip.max_pixels} pixels")
    refuse_long_sides(width, height)
    return height, width


def _refusal(message: str) -> RefusedError:
    return RefusedError(422, "invalid_request", message)
