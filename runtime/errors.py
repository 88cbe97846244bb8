"""The one error of this room that a user is meant to read."""

from __future__ import annotations

__all__ = ["ReconstructError"]


class ReconstructError(ValueError):
    """A reconstruction cannot be made as asked; the message is one line: what, why, what would be right."""
