"""The form of `POST /v1/videos/sync`: its fields read, checked, and described for OpenAPI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.datastructures import FormData, UploadFile

from foresight.models.presets import StackConfig
from foresight.models.sigmas import sigma_schedule
from foresight.runtime.config import PipelineConfig
from foresight.runtime.frame_records import FRAMES_TYPE
from foresight.runtime.refusals import RefusedError

__all__ = ["VIDEO_OPENAPI", "read_upload", "request_config"]

_FIELDS = ("clip", "mode", "steps", "seed", "size")


def read_upload(form: FormData) -> tuple[UploadFile, dict[str, Any]]:
    """The clip and the other fields; raises RefusedError (422) for anything missing, double or unknown."""
    for name in form:
        if name not in _FIELDS:
            raise _refusal(f"form field {name[:40]!r}: unknown; known are {', '.join(_FIELDS)}")
        if len(form.getlist(name)) > 1:
            raise _refusal(f"form field {name}: is given more than once")
    clip = form.get("clip")
    if not isinstance(clip, UploadFile):
        raise _refusal("form field clip: give the video file, as in curl -F clip=@clip.mp4")
    values = {name: value for name, value in form.items() if name != "clip"}
    if any(not isinstance(value, str) for value in values.values()):
        raise _refusal("form fields other than clip: must be text, not files")
    return clip, values


def request_config(
    values: Mapping[str, Any], *, stack: StackConfig, modes: tuple[str, ...], max_steps: int
) -> PipelineConfig:
    """What a request asks of the pipeline; raises RefusedError (422) for what this server does not do."""
    mode, size = values.get("mode", modes[0]), values.get("size", "source")
    if mode not in modes:
        raise _refusal(f"mode {str(mode)[:40]!r}: this server has {', '.join(modes)}")
    steps = _whole(values, "steps", min(4, max_steps))
    if steps > max_steps:
        raise _refusal(f"steps {steps}: at most {max_steps} are accepted")
    try:
        sigma_schedule(stack, steps)
        return PipelineConfig(mode=mode, steps=steps, seed=_whole(values, "seed", 0), size=size)
    except ValueError as error:
        raise _refusal(str(error)[:200]) from error


def _whole(values: Mapping[str, Any], name: str, default: int) -> int:
    value = values.get(name, default)
    text = str(value)
    if isinstance(value, bool) or not text.isascii() or not text.isdigit() or len(text) > 19:
        raise _refusal(f"{name} {text[:40]!r}: must be a whole number, 0 or more")
    return int(text)


def _refusal(message: str) -> RefusedError:
    return RefusedError(422, "invalid_request", " ".join(message.split()))


_PROPERTIES = {
    "clip": {"type": "string", "format": "binary", "description": "mp4, mov, webm or mkv"},
    "mode": {"type": "string", "enum": ["conditioning", "latent"]},
    "steps": {"type": "integer", "minimum": 1, "default": 4, "description": "denoising steps a chunk"},
    "seed": {"type": "integer", "minimum": 0, "default": 0},
    "size": {"type": "string", "enum": ["source", "model"], "default": "source"},
}
_ERRORS = {
    "400": "The form cannot be read",
    "401": "No key, or a wrong one",
    "403": "A page of another origin",
    "406": "Accept names neither form of the answer",
    "408": "The body came too slowly",
    "413": "The body is too large",
    "415": "Not multipart/form-data",
    "422": "A field is wrong, or the clip is refused; the message says why",
    "429": "The queue is full; Retry-After says when to come back",
    "503": "Not ready: warming up, draining, or after a device fault",
}
VIDEO_OPENAPI: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "required": ["clip"], "properties": _PROPERTIES}
            }
        },
    },
    "responses": {
        "200": {
            "description": "The reconstruction; the headers X-Foresight-* say what every stage took",
            "content": {
                "video/mp4": {"schema": {"type": "string", "format": "binary"}},
                FRAMES_TYPE: {"schema": {"type": "string", "format": "binary"}},
            },
        }
    }
    | {status: {"description": description} for status, description in _ERRORS.items()},
}
"""What OpenAPI says of the route."""
