"""What a command logs stands on stderr in its own line, and nothing else does."""

from __future__ import annotations

import logging

import pytest

from foresight.runtime.command_log import log_to_stderr


def test_one_line_an_event_from_info_on(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("foresight.runtime.anything")
    with log_to_stderr("foresight-job"):
        logger.info("backend %s", "two\nlines")
        logger.debug("too much")
        logging.getLogger("transformers").info("somebody else's")
    assert capsys.readouterr().err == "foresight-job: backend two lines\n"


def test_the_log_is_as_before_afterwards(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("foresight")
    before = (logger.handlers, logger.level, logger.propagate)
    with pytest.raises(KeyboardInterrupt), log_to_stderr("foresight-job"):
        raise KeyboardInterrupt
    assert (logger.handlers, logger.level, logger.propagate) == before
    with caplog.at_level(logging.INFO, "foresight"):
        logger.info("after")
    assert caplog.messages == ["after"]
    assert capsys.readouterr().err == ""
