"""The error that a user of engines sees."""

from __future__ import annotations

__all__ = ["EngineDamagedError", "EngineError"]


class EngineError(ValueError):
    """An engine cannot be used or made; the message is one line that says why."""


class EngineDamagedError(EngineError):
    """A member is not what the manifest says: nothing of the engine is to be used."""
