"""A request that is turned down, as a status, a code and one line; and which errors are the client's own."""

from __future__ import annotations

import logging

from foresight.media import ClipError
from foresight.runtime.outbox import ClientStalledError

__all__ = ["RefusedError", "refusal_of"]

_LOG = logging.getLogger(__name__)


class RefusedError(Exception):
    """A request cannot be served; `status` is HTTP's, `retry_after` the seconds until it is worth trying again."""

    def __init__(self, status: int, code: str, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after = status, code, message, retry_after


def refusal_of(error: Exception, request_id: str) -> RefusedError:
    """What a client is told of an error: of its own in the error's words, of any other that there was one.

    The latter is logged with its traceback and the id by which the client knows the request.
    """
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, ClipError):
        return RefusedError(422, "clip_refused", str(error))
    if isinstance(error, ClientStalledError):
        return RefusedError(408, "client_stalled", str(error))
    _LOG.error("request %s failed", request_id, exc_info=error)
    return RefusedError(500, "internal", "the reconstruction failed")
