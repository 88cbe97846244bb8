"""A request that is turned down, as a status, a code and one line."""

from __future__ import annotations

__all__ = ["RefusedError"]


class RefusedError(Exception):
    """A request cannot be served; `status` is HTTP's, `retry_after` the seconds until it is worth trying again."""

    def __init__(self, status: int, code: str, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after = status, code, message, retry_after
