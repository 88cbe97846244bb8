"""Every backend of one engine side by side: latency of a call and distance from eager in fp32.

Backends take turns, so that a busy machine is equally busy for all of them. `python -m bench.backends --device
cuda` writes the same table where pytest's plugin is missing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.environment import describe_command, describe_environment
from foresight.adapters import EngineFile, load_engine_adapter
from foresight.export.job import export_engine
from foresight.export.options import ExportOptions
from foresight.export.parity import measure_parity, parity_cases
from foresight.runtime.backend import BACKENDS, Backend
from foresight.runtime.backend_choice import open_backend
from foresight.runtime.loading import default_dtype

__all__ = ["CHECKPOINT", "Contest", "make_engine", "results_path"]

CHECKPOINT = Path(__file__).parents[1] / "models/weights/nano/adapters/conditioning_10m"
_ROUNDS, _WARM_UP = 60, 5


def results_path(device: torch.device, dtype: torch.dtype) -> Path:
    """Where the table of a device's kind and dtype lies."""
    name = str(dtype).removeprefix("torch.")
    return Path(__file__).parent / "results" / f"backends_{device.type}_{name}.json"


class Contest:
    """The backends that can run here, on the clip of the engine's first bucket, in the device's usual dtype."""

    def __init__(self, engine: Path, device: torch.device, dtype: torch.dtype | None = None) -> None:
        self.device, self.dtype = device, dtype or default_dtype(device)
        self.passed_over: dict[str, str] = {}
        self.backends: dict[str, Backend] = {}
        with EngineFile(engine) as file:
            self.reference = load_engine_adapter(file)
            self.bucket = file.manifest.buckets[0]
            fingerprint = file.manifest.stack_fingerprint
        options: dict[str, Any] = {
            "device": device,
            "dtype": self.dtype,
            "stack_fingerprint": fingerprint,
        }
        self.default = open_backend(engine, **options).describe().name
        for name in BACKENDS:
            try:
                self.backends[name] = open_backend(engine, backend=name, **options)
            except ValueError as error:
                self.passed_over[name] = str(error).partition("(")[2].removesuffix(")")
        case = parity_cases(self.reference, [self.bucket], static=True)[0]
        self._features = [
            each.to(device, self.dtype) for each in (case.vlm_hidden_states, case.dino_hidden_states)
        ]
        self._grids: dict[str, Any] = {"vlm_grid": case.vlm_grid, "dino_grid": case.dino_grid}

    def call(self, name: str) -> None:
        """One translation, waited for."""
        self.backends[name](*self._features, **self._grids)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def milliseconds(self) -> dict[str, list[float]]:
        """Times of all calls by backend, in turns."""
        times: dict[str, list[float]] = {name: [] for name in self.backends}
        with torch.inference_mode():
            for index in range(_ROUNDS + _WARM_UP):
                for name, measured in times.items():
                    begun = time.perf_counter()
                    self.call(name)
                    if index >= _WARM_UP:
                        measured.append((time.perf_counter() - begun) * 1e3)
        return times

    def rows(self) -> list[dict[str, Any]]:
        """A row for every backend, the quickest first."""
        rows: list[dict[str, Any]] = []
        for name, times in self.milliseconds().items():
            backend = self.backends[name]
            parity = measure_parity(
                self.reference,
                parity_cases(self.reference, [self.bucket], static=True),
                partial(self._answer, backend),
                dtype=self.dtype,
                device=self.device,
            )
            rows.append(
                {
                    "backend": name,
                    "what": str(backend.describe()),
                    "median_ms": statistics.median(times),
                    "fastest_ms": min(times),
                    "max_error": parity.max_error,
                    "allowed_error": parity.bound,
                    "default": name == self.default,
                }
            )
        return sorted(rows, key=lambda row: row["median_ms"])

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Write the table with what it was measured on."""
        content = {
            "command": describe_command(),
            "environment": describe_environment(),
            "dtype": str(self.dtype).removeprefix("torch."),
            "bucket": {"vlm_tokens": self.bucket.vlm_tokens, "dino_tokens": self.bucket.dino_tokens},
            "rounds": _ROUNDS,
            "rows": rows,
            "passed_over": self.passed_over,
        }
        path = results_path(self.device, self.dtype)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def _answer(self, backend: Backend, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        vlm, dino, vlm_grid, dino_grid, lengths = inputs
        # Cloned, because the next call may overwrite it.
        return backend(
            vlm.to(self.device),
            dino.to(self.device),
            vlm_grid=tuple(vlm_grid.tolist()),
            dino_grid=tuple(dino_grid.tolist()),
            vlm_lengths=lengths.to(self.device),
        ).clone()


def make_engine(folder: Path) -> Path:
    """The shipped adapter's engine, with all that this machine can make."""
    path = folder / "adapter_10m.engine"
    export_engine(ExportOptions(checkpoint=CHECKPOINT, output=path), say=print)
    return path


def main() -> None:
    """Measure on the device that is named and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--engine", type=Path)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dtype = getattr(torch, arguments.dtype) if arguments.dtype else None
    with tempfile.TemporaryDirectory() as folder:
        contest = Contest(
            arguments.engine or make_engine(Path(folder)), torch.device(arguments.device), dtype
        )
        rows = contest.rows()
    contest.write(rows)
    for row in rows:
        times = f"median {row['median_ms']:8.3f} ms, fastest {row['fastest_ms']:8.3f} ms"
        print(f"{row['backend']:9} {times}, error {row['max_error']:.1e}  {row['what']}")


if __name__ == "__main__":
    main()
