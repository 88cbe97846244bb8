"""The error of this room that a user is meant to read."""

from __future__ import annotations

__all__ = ["ExportError"]


class ExportError(ValueError):
    """An engine or one of its members cannot be made here; the message is one line that says why."""
