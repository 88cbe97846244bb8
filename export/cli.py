"""The command `foresight-export`: a checkpoint in, an engine out."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

import tyro

from foresight.export.options import ExportOptions

__all__ = ["main"]

_NAME = "foresight-export"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 2 for what the user can mend, 130 when interrupted."""
    options = tyro.cli(ExportOptions, args=arguments, prog=_NAME)
    from foresight.export.job import export_engine

    # The compilers' own remarks would bury what this command has to say; torch sets its level when imported.
    for name in ("torch", "torch.utils.cpp_extension", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        result = export_engine(options, say=lambda line: print(f"{_NAME}: {line}", file=sys.stderr))
    except KeyboardInterrupt:
        print(f"{_NAME}: interrupted, nothing was written", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"{_NAME}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    members = ", ".join(member.name for member in result.manifest.members)
    print(f"{options.output}: {options.output.stat().st_size / 1e6:.1f} MB, {members}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
