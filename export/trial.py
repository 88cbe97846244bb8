"""A first run of native code in a process of its own: a loader that crashes or hangs takes no export with it.

`python -m foresight.export.trial PACKAGE INPUTS OUTPUTS DEVICE` is that process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from foresight.adapters import ENGINE_INPUTS, open_aoti
from foresight.export.errors import ExportError

__all__ = ["TrialError", "try_package"]

# Loading takes seconds: this is for what never ends.
_SECONDS = 600
_MODULE = "foresight.export.trial"
_SIGNALS = {each.value: each.name for each in signal.Signals}


class TrialError(ExportError):
    """The process that tried a package gave no answer; the message says how it ended."""


def try_package(package: Path, inputs: Sequence[tuple[Tensor, ...]], device: torch.device) -> list[Tensor]:
    """What a package of AOTInductor makes of each of `inputs` (those of `ENGINE_INPUTS`): fp32 on the CPU.

    The files between the processes lie beside the package meanwhile. Raises TrialError when the other process
    is killed, fails, or takes longer than ten minutes.
    """
    with tempfile.TemporaryDirectory(dir=package.parent, prefix="trial-") as name:
        folder = Path(name)
        given, made, log = folder / "inputs.safetensors", folder / "outputs.safetensors", folder / "log"
        save_file(
            {
                f"{index}.{key}": tensor.contiguous()
                for index, case in enumerate(inputs)
                for key, tensor in zip(ENGINE_INPUTS, case, strict=True)
            },
            given,
        )
        _run([package, given, made, device], log)
        if not made.is_file():
            raise TrialError("the process that tried it ended without an answer")
        answers = load_file(made)
    return [answers[str(index)] for index in range(len(inputs))]


def _run(arguments: Sequence[object], log: Path) -> None:
    # This process's own path, and not the working folder before it (-P): the same foresight, however installed.
    command = [sys.executable, "-P", "-m", _MODULE, *map(str, arguments)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path),
        # The order of sums, and with it the figure, depends on it.
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    with log.open("wb") as errors:
        try:
            code = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                timeout=_SECONDS,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired as error:
            raise TrialError(f"the process that tried it did not end within {_SECONDS} seconds") from error
    if code < 0:
        raise TrialError(f"the process that tried it ended with {_SIGNALS.get(-code, f'signal {-code}')}")
    if code > 0:
        said = log.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip()[:300] for line in reversed(said) if line.strip()), "it said nothing")
        raise TrialError(f"the process that tried it ended with exit code {code}: {last}")


def _answer(package: str, inputs: str, outputs: str, device: str) -> None:
    run, tensors = open_aoti(Path(package), torch.device(device)), load_file(inputs)
    answers = {}
    for index in range(len(tensors) // len(ENGINE_INPUTS)):
        output = run(tuple(tensors[f"{index}.{key}"] for key in ENGINE_INPUTS))
        answers[str(index)] = output.float().cpu().contiguous()
    save_file(answers, outputs)


if __name__ == "__main__":
    try:
        _answer(*sys.argv[1:])
    except Exception as error:
        # Whatever a package raises is its refusal; only the first line of torch's tells.
        sys.exit(next(iter(str(error).strip().splitlines()), type(error).__name__))
