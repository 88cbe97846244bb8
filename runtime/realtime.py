"""`WS /v1/realtime/video`: frames in, reconstructed frames out, a chunk at a time.

The client's first message is a start in JSON, then come frames as binary messages, and {"type": "end"} for what
is left. The server answers {"type": "ready"}, then for every chunk {"type": "chunk", ...} and its frames as JPEG
in binary messages, and last {"type": "done", ...}. A client that sends faster than the models work is slowed down
by its own connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from fastapi import APIRouter, WebSocket
from numpy.typing import NDArray
from starlette.websockets import WebSocketDisconnect

from foresight.media import FrameBatch
from foresight.runtime.chunks import Chunk, ChunkBuilder
from foresight.runtime.decoding import PictureDecoder
from foresight.runtime.engine_models import EngineModels
from foresight.runtime.frame_records import encode_jpeg
from foresight.runtime.ledger import Ledger
from foresight.runtime.realtime_start import RealtimeStart, read_control
from foresight.runtime.refusals import RefusedError, refusal_of
from foresight.runtime.refused_response import send_refusal
from foresight.runtime.service_state import ServiceState

__all__ = ["router"]

Frame = NDArray[np.uint8]
_SEND_SECONDS = 30.0
_CLOSING_CODES = {500: 1011, 503: 1013}

router = APIRouter()


@router.websocket("/v1/realtime/video")
async def realtime_video(websocket: WebSocket) -> None:
    """Reconstruct a live stream."""
    state: ServiceState = websocket.app.state.service
    try:
        models = state.ready_models()
        with state.session_place():
            await websocket.accept()
            await _Session(websocket, state, models).run()
    except RefusedError as refusal:  # before the stream is open
        state.count_refused(refusal)
        await send_refusal(refusal, websocket.scope, websocket.receive, websocket.send)


class _Session:
    """One live stream: a task that reads, a task that works, and an end to both."""

    def __init__(self, websocket: WebSocket, state: ServiceState, models: EngineModels) -> None:
        self._websocket, self._state, self._models = websocket, state, models
        self._request_id: str = websocket.scope["state"]["request_id"]
        # The reader waits while a chunk's frames are in here, and so does the client.
        self._frames: asyncio.Queue[Frame | None] = asyncio.Queue(models.config.num_frames)
        self._pictures: PictureDecoder | None = None
        self._ledger: Ledger | None = None

    async def run(self) -> None:
        """Serve the stream to its end; whatever goes wrong is told to the client in one line."""
        status = "500"
        try:
            async with asyncio.timeout(self._state.limits.session_seconds):
                await self._converse()
            status = "200"
        except WebSocketDisconnect:
            status = "499"
        except TimeoutError:
            status = "408"
            await self._close_with_error(
                RefusedError(408, "idle", "the stream was idle or open for too long")
            )
        except Exception as error:
            refusal = refusal_of(error, self._request_id)
            status = str(refusal.status)
            await self._close_with_error(refusal)
        finally:
            self._state.metrics.requests.labels(status).inc()
            if self._pictures is not None:
                await asyncio.to_thread(self._pictures.close)

    async def _converse(self) -> None:
        message = read_control(await self._receive_text())
        start = RealtimeStart.parse(message, self._models, self._state.limits)
        if start.raw_size is None:
            self._pictures = await asyncio.to_thread(PictureDecoder, self._state.limits.clip)
        await self._send({"type": "ready", "chunk_frames": self._models.config.num_frames})
        reading = asyncio.create_task(self._read(start))
        working = asyncio.create_task(self._work(start))
        draining = asyncio.create_task(self._until_draining())
        tasks = (reading, working, draining)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if draining.done():
                reading.cancel()
                await self._frames.put(None)
            elif reading.done():
                reading.result()
            await working
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        done = self._ledger.to_dict() if self._ledger is not None else {"frames": 0}
        await self._send({"type": "done", "draining": self._state.draining} | done)
        await self._websocket.close(1012 if self._state.draining else 1000)

    async def _read(self, start: RealtimeStart) -> None:
        while True:
            message = await self._receive()
            content = message.get("bytes")
            if content is not None:
                await self._frames.put(await self._decode(content, start))
                continue
            kind = read_control(message["text"]).get("type")
            if kind != "end":
                raise RefusedError(
                    422, "invalid_request", f"control {str(kind)[:40]!r}: after the start only end"
                )
            await self._frames.put(None)
            return

    async def _work(self, start: RealtimeStart) -> None:
        builder, count = ChunkBuilder(self._models.config.num_frames), 0
        while (frame := await self._frames.get()) is not None:
            chunk = builder.add(frame, float(count / start.fps), start.fps)
            count += 1
            if chunk is not None:
                await self._answer(chunk, start)
        last = builder.finish()
        if last is not None:
            await self._answer(last, start)

    async def _answer(self, chunk: Chunk, start: RealtimeStart) -> None:
        def unit(models: EngineModels) -> tuple[FrameBatch, Ledger]:
            pipeline = models.pipeline(start.config)
            batch = pipeline.reconstruct(chunk).batch
            return batch, Ledger.of(pipeline.clock.timings(), chunks=1, frames=len(batch))

        batch, ledger = await asyncio.wrap_future(self._state.worker.run_soon(unit))
        self._state.metrics.add_stages(ledger)
        self._ledger = self._ledger + ledger if self._ledger is not None else ledger
        pictures = await asyncio.to_thread(lambda: [encode_jpeg(frame) for frame in batch.frames])
        first = self._ledger.frames - len(batch)
        await self._send({"type": "chunk", "index": chunk.index, "first_frame": first} | ledger.to_dict())
        for picture in pictures:
            async with asyncio.timeout(_SEND_SECONDS):
                await self._websocket.send_bytes(picture)

    async def _decode(self, content: bytes, start: RealtimeStart) -> Frame:
        if start.raw_size is None:
            assert self._pictures is not None
            return await asyncio.to_thread(self._pictures.decode, content)
        height, width = start.raw_size
        if len(content) != height * width * 3:
            raise RefusedError(
                422,
                "invalid_request",
                f"raw frame of {len(content)} bytes: {width}x{height} RGB has {height * width * 3}",
            )
        return np.frombuffer(content, np.uint8).reshape(height, width, 3)

    async def _until_draining(self) -> None:
        while not self._state.draining:
            await asyncio.sleep(0.1)

    async def _receive(self) -> Mapping[str, Any]:
        async with asyncio.timeout(self._state.limits.idle_seconds):
            message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1006))
        return message

    async def _receive_text(self) -> str:
        text = (await self._receive()).get("text")
        if text is None:
            raise RefusedError(422, "invalid_request", "the first message must be a start in JSON")
        return str(text)

    async def _send(self, message: Mapping[str, Any]) -> None:
        async with asyncio.timeout(_SEND_SECONDS):
            await self._websocket.send_json(message)

    async def _close_with_error(self, refusal: RefusedError) -> None:
        message = " ".join(refusal.message.split())[:500]
        error = {"code": refusal.code, "message": message, "request_id": self._request_id}
        with suppress(WebSocketDisconnect, RuntimeError, TimeoutError):
            await self._send({"type": "error"} | error)
            await self._websocket.close(_CLOSING_CODES.get(refusal.status, 1008))
