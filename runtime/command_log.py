"""A command's log on stderr: one line an event, after the command's name, as its warnings and errors are."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["log_to_stderr"]


class _OneLineFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return " ".join(super().format(record).split())


@contextmanager
def log_to_stderr(command: str) -> Iterator[None]:
    """Print on stderr what this package logs inside the block, from INFO on; afterwards its log is as before."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLineFormatter(f"{command}: %(message)s"))
    logger = logging.getLogger("foresight")
    before = logger.handlers, logger.level, logger.propagate
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before[0], before[2]
        logger.setLevel(before[1])
