"""The one error that a bad clip or a bad output place ends in."""

from __future__ import annotations


class ClipError(ValueError):
    """A clip cannot be read or written; its one line names the file, the reason and what would be right."""
