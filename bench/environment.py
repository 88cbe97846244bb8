"""What a benchmark's figures were measured on and by which command, put into the file that holds them."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from foresight.evaluation.environment import (
    describe_hardware,
    describe_threads,
    find_commit,
    library_versions,
)

__all__ = ["describe_command", "describe_environment"]


def describe_command() -> str:
    """The command line of this process, the interpreter and a script named without their folders."""
    program, *arguments = sys.orig_argv[1:]
    started = [Path(program).name] if Path(program).is_absolute() else ["python", program]
    return shlex.join([*started, *arguments])


def describe_environment() -> dict[str, Any]:
    """Hardware, threads, versions, commit and how busy the machine was at the end, as JSON values."""
    cuda = torch.cuda.is_available()
    return {
        "hardware": describe_hardware("cuda" if cuda else "cpu"),
        **describe_threads(),
        "cuda": torch.version.cuda if cuda else None,
        "versions": library_versions(),
        "commit": find_commit(),
        "load_average": os.getloadavg(),
    }
