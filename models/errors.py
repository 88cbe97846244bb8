"""What goes wrong for a user of the models, in one line each."""

from __future__ import annotations

__all__ = ["StackError"]


class StackError(ValueError):
    """A stack that cannot be loaded or saved; the message is one line that says what would be right."""
