"""The command `foresight-serve`: reconstructions over HTTP and WebSocket."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec

import tyro

from foresight.runtime.server_options import ServeError, ServeOptions
from foresight.runtime.waiting import wait_briefly

__all__ = ["main"]

_NAME = "foresight-serve"
_KEY_VARIABLE = "FORESIGHT_API_KEY"
_NEEDED = ("fastapi", "uvicorn", "python_multipart", "prometheus_client", "websockets", "PIL")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 after a drain, 2 for what the user can mend.

    Without `arguments` those of the command line are taken, and the process is the command's own.
    """
    try:
        options = _options(arguments)
        _check_installed()
        if arguments is None:
            wait_briefly()
        from foresight.runtime.serving import serve

        serve(options, own_process=arguments is None)
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split())
        print(f"{_NAME}: error: {message}", file=sys.stderr)
        return 2
    return 0


def _options(arguments: Sequence[str] | None) -> ServeOptions:
    options = tyro.cli(ServeOptions, args=arguments, prog=_NAME)
    if options.api_key is None and (key := os.environ.get(_KEY_VARIABLE)):
        options = replace(options, api_key=key)
    options.check()
    return options


def _check_installed() -> None:
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise ServeError(f"needs {', '.join(missing)}; install them with: pip install 'foresight[serve]'")


if __name__ == "__main__":
    sys.exit(main())
