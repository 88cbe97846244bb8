"""The error that a user of adapters sees."""

from __future__ import annotations

__all__ = ["AdapterError"]


class AdapterError(ValueError):
    """An adapter's checkpoint or configuration cannot be used; the message is one line that says why."""
