"""The command `foresight-reconstruct`: a clip in, its reconstruction out."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import tyro

from foresight.runtime.command_log import log_to_stderr
from foresight.runtime.job import reconstruct
from foresight.runtime.options import ReconstructOptions
from foresight.runtime.report import Report
from foresight.runtime.waiting import wait_briefly

__all__ = ["main"]

_NAME = "foresight-reconstruct"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 2 for what the user can mend, 130 when interrupted.

    Without `arguments` those of the command line are taken, and the process is the command's own.
    """
    options = tyro.cli(ReconstructOptions, args=arguments, prog=_NAME)
    if arguments is None:
        wait_briefly()
    try:
        with log_to_stderr(_NAME):
            report = reconstruct(options, own_process=arguments is None)
    except KeyboardInterrupt:
        print(f"{_NAME}: interrupted, nothing was written", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split())
        print(f"{_NAME}: error: {message}", file=sys.stderr)
        return 2
    for warning in report.warnings:
        print(f"{_NAME}: warning: {warning}", file=sys.stderr)
    print(_summary(options, report))
    return 0


def _summary(options: ReconstructOptions, report: Report) -> str:
    quality = f", {report.psnr_db:.1f} dB PSNR" if report.psnr_db is not None else ""
    frames = f"{report.frames} frame{'s' if report.frames != 1 else ''}"
    return f"{options.output}: {frames} at {report.fps:.1f} a second{quality}"


if __name__ == "__main__":
    sys.exit(main())
