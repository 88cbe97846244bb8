"""`POST /v1/videos/sync`: a clip in; an mp4, or frames as they are made, out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import BinaryIO, TypeVar

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from foresight.media import ClipError
from foresight.runtime.config import PipelineConfig
from foresight.runtime.decoding import DecodedClip
from foresight.runtime.frame_records import END, ERROR, FRAMES_TYPE, json_record
from foresight.runtime.outbox import Outbox
from foresight.runtime.refusals import RefusedError, refusal_of
from foresight.runtime.service_state import ServiceState
from foresight.runtime.sinks import FrameSink, Mp4Sink
from foresight.runtime.ticket import Sink, Ticket
from foresight.runtime.video_form import VIDEO_OPENAPI, read_upload, request_config
from foresight.runtime.watched_stream import WatchedStream, unless_left

__all__ = ["router"]

T = TypeVar("T")
_PART_BYTES = 2**18

router = APIRouter()


@router.post("/v1/videos/sync", openapi_extra=VIDEO_OPENAPI, response_class=Response)
async def reconstruct_video(request: Request) -> Response:
    """Reconstruct the posted clip; `Accept: application/x-foresight-frames` streams the frames."""
    state: ServiceState = request.app.state.service
    try:
        return await _answer(request, state)
    except Exception as error:
        refusal = _as_refusal(error, _request_id(request))
        state.count_refused(refusal)
        raise refusal from error


async def _answer(request: Request, state: ServiceState) -> Response:
    frames = _wants_frames(request.headers.get("accept", "*/*"))
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise RefusedError(415, "not_a_form", "post multipart/form-data, as curl -F clip=@clip.mp4 does")
    state.refuse_unready()
    state.worker.refuse_full()
    with state.upload_place():
        clip, config = await _receive_clip(request, state)
    answer = _answer_frames if frames else _answer_mp4
    return await answer(request, state, clip, config)


def _wants_frames(accept: str) -> bool:
    kinds = [kind.partition(";")[0].strip().lower() for kind in accept.split(",")]
    if FRAMES_TYPE in kinds:
        return True
    if not {"video/mp4", "video/*", "*/*", ""} & set(kinds):
        raise RefusedError(406, "not_acceptable", f"this route answers with video/mp4 or {FRAMES_TYPE}")
    return False


async def _receive_clip(request: Request, state: ServiceState) -> tuple[DecodedClip, PipelineConfig]:
    async with request.form(max_files=1, max_fields=8, max_part_size=4096) as form:
        upload, values = read_upload(form)
        models = state.ready_models()
        config = request_config(
            values, stack=models.config, modes=models.modes, max_steps=state.limits.max_steps
        )
        most = state.limits.clip.max_bytes
        if most is not None and (upload.size or 0) > most:
            raise RefusedError(
                413, "too_large", f"the clip exceeds {most / 2**20:.4g} MiB; send a smaller one"
            )
        await upload.seek(0)
        opening = asyncio.ensure_future(asyncio.to_thread(state.decoder.open, upload.file))
        try:
            return await asyncio.shield(opening), config
        except asyncio.CancelledError:
            # The thread cannot be cancelled, and what it opens must be closed.
            opening.add_done_callback(_close_opened)
            raise


def _close_opened(opening: asyncio.Future[DecodedClip]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


async def _answer_frames(
    request: Request, state: ServiceState, clip: DecodedClip, config: PipelineConfig
) -> Response:
    outbox: Outbox[bytes] = Outbox()
    ticket = _submitted(state, clip, config, FrameSink(outbox))
    with _cancelled_on_error(state, ticket, outbox):
        # What fails before the first frame is a clean error with a status of its own.
        first = await unless_left(outbox.get(), request.receive)
    parts = _frame_parts(state, ticket, outbox, first or b"", _request_id(request))
    headers = _ledger_headers(ticket)
    return WatchedStream(await anext(parts), parts, media_type=FRAMES_TYPE, headers=headers)


async def _frame_parts(
    state: ServiceState, ticket: Ticket, outbox: Outbox[bytes], first: bytes, request_id: str
) -> AsyncGenerator[bytes]:
    status = "499"
    try:
        yield first
        while (part := await outbox.get()) is not None:
            yield part
        status = "200"
        warnings = [ticket.clip.warning] if ticket.clip.warning else []
        ledger = ticket.ledger.to_dict() if ticket.ledger else {}
        yield json_record(END, ledger | {"warnings": warnings})
    except Exception as error:
        refusal = refusal_of(error, request_id)
        status = str(refusal.status)
        yield json_record(ERROR, {"code": refusal.code, "message": refusal.message, "request_id": request_id})
    finally:
        outbox.close()
        state.worker.cancel(ticket)
        state.metrics.requests.labels(status).inc()


async def _answer_mp4(
    request: Request, state: ServiceState, clip: DecodedClip, config: PipelineConfig
) -> Response:
    outbox: Outbox[BinaryIO] = Outbox()
    ticket = _submitted(state, clip, config, Mp4Sink(outbox, fps=clip.info.fps))
    with _cancelled_on_error(state, ticket, outbox):
        file = await unless_left(_last(outbox), request.receive)
    headers = {"Content-Length": str(file.seek(0, 2))} | _ledger_headers(ticket)
    if ticket.clip.warning:
        headers["X-Foresight-Warning"] = ticket.clip.warning.encode("ascii", "replace").decode()
    file.seek(0)
    parts = _file_parts(state, file)
    return WatchedStream(await anext(parts), parts, media_type="video/mp4", headers=headers)


async def _last(outbox: Outbox[BinaryIO]) -> BinaryIO:
    file = await outbox.get()
    if file is None:
        raise ClipError("clip: gave no frames; give another clip")
    try:
        await outbox.get()
    except BaseException:
        file.close()
        raise
    return file


async def _file_parts(state: ServiceState, file: BinaryIO) -> AsyncGenerator[bytes]:
    status = "499"
    try:
        while part := file.read(_PART_BYTES):
            yield part
        status = "200"
    finally:
        file.close()
        state.metrics.requests.labels(status).inc()


def _submitted(state: ServiceState, clip: DecodedClip, config: PipelineConfig, sink: Sink) -> Ticket:
    ticket = Ticket(config=config, clip=clip, sink=sink)
    try:
        state.refuse_unready()
        state.worker.submit(ticket)
    except RefusedError as refusal:
        ticket.end(refusal)
        raise
    return ticket


@contextmanager
def _cancelled_on_error(state: ServiceState, ticket: Ticket, outbox: Outbox[T]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        outbox.close()
        state.worker.cancel(ticket)
        raise


def _ledger_headers(ticket: Ticket) -> dict[str, str]:
    return ticket.ledger.headers() if ticket.ledger is not None else {}


def _as_refusal(error: Exception, request_id: str) -> RefusedError:
    if isinstance(error, HTTPException):
        return RefusedError(error.status_code, "invalid_form", " ".join(str(error.detail).split())[:200])
    return refusal_of(error, request_id)


def _request_id(request: Request) -> str:
    return str(request.scope["state"]["request_id"])
