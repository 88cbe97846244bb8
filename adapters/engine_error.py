"""The error that a user of engines sees."""

from __future__ import annotations

__all__ = ["EngineError"]


class EngineError(ValueError):
    """An engine cannot be used or made; the message is one line that says why."""
