"""How long one clip's adapter takes on two CPU cores: the prepared path against ONNX Runtime and torch.compile.

Run as `OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=1000 python -m bench.adapter_cpu_latency`, as the commands wait: threads
that spin make PyTorch many times slower on cores that others use too. The ways take turns, so that whatever else the
machine does meets all of them.
"""

from __future__ import annotations

import copy
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.environment import describe_command, describe_environment
from foresight.adapters import Grid, adapter_config, build_adapter
from foresight.runtime.prepared import prepare

__all__ = ["CASES", "RESULTS", "Case", "measure", "write_results"]

RESULTS = Path(__file__).parent / "results" / "adapter_cpu_latency.json"
ROUNDS = 30
_THREADS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """The widths of a stack's encoders and the grids of their tokens."""

    name: str
    vlm_dim: int
    dino_dim: int
    vlm_grid: Grid
    dino_grid: Grid


CASES = (
    Case(
        name="10m, nano stack, 768+120",
        vlm_dim=3584,
        dino_dim=192,
        vlm_grid=(5, 4, 6),
        dino_grid=(3, 16, 16),
    ),
    Case(
        name="10m, full stack's sizes, 256+384",
        vlm_dim=3584,
        dino_dim=1024,
        vlm_grid=(1, 16, 24),
        dino_grid=(1, 16, 16),
    ),
)


class _Placed(nn.Module):
    """The adapter with its grids fixed, as an exporter wants it."""

    def __init__(self, adapter: nn.Module, grids: Mapping[str, Grid]) -> None:
        super().__init__()
        self.adapter, self.grids = adapter, dict(grids)

    def forward(self, vlm: Tensor, dino: Tensor) -> Tensor:
        output: Tensor = self.adapter(vlm, dino, **self.grids)
        return output


def measure(case: Case) -> dict[str, Any]:
    """Median milliseconds of every way to run `case`, after they agreed on the result."""
    torch.manual_seed(0)
    torch.set_num_threads(_THREADS)
    adapter = build_adapter(
        adapter_config("query", "10m", vlm_dim=case.vlm_dim, dino_dim=case.dino_dim)
    ).eval()
    grids = {"vlm_grid": case.vlm_grid, "dino_grid": case.dino_grid}
    vlm = torch.randn(1, torch.Size(case.vlm_grid).numel(), case.vlm_dim)
    dino = torch.randn(1, torch.Size(case.dino_grid).numel(), case.dino_dim)
    placed = _Placed(adapter, grids).eval()
    prepared = prepare(adapter, "cpu", torch.float32)
    low = torch.bfloat16
    prepared_low, placed_low = prepare(adapter, "cpu", low), copy.deepcopy(placed).to(low)
    with torch.no_grad():
        compiled = torch.compile(placed, dynamic=False)
        compiled_low = torch.compile(placed_low, dynamic=False)
        frozen = torch.compile(placed, dynamic=False, options={"freezing": True})
        ways: dict[str, Callable[[], Any]] = {
            "eager": partial(placed, vlm, dino),
            "prepared": lambda: prepared(vlm, dino, **grids),  # type: ignore[arg-type]
            "onnx_runtime": _onnx_runtime(placed, vlm, dino),
            "torch_compile": partial(compiled, vlm, dino),
            "torch_compile_frozen": partial(frozen, vlm, dino),
            # From fp32 features to an fp32 result, as a pipeline on the CPU has them.
            "prepared_bfloat16": lambda: prepared_low(vlm.to(low), dino.to(low), **grids).float(),  # type: ignore[arg-type]
            "torch_compile_bfloat16": lambda: compiled_low(vlm.to(low), dino.to(low)).float(),
        }
        expected = placed(vlm, dino)
        for name, run in ways.items():
            difference = (torch.as_tensor(run()) - expected).abs().max().item()
            if not difference < (0.05 if name.endswith("bfloat16") else 1e-3):
                raise ValueError(f"{name}: is {difference} away from the adapter")
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, run in ways.items():
                run()
                begun = time.perf_counter()
                run()
                times[name].append((time.perf_counter() - begun) * 1e3)
    return {
        "case": case.name,
        "median_ms": {name: statistics.median(values) for name, values in times.items()},
        "fastest_ms": {name: min(values) for name, values in times.items()},
        "prepared": prepared.report().path,
    }


def _onnx_runtime(placed: nn.Module, vlm: Tensor, dino: Tensor) -> Callable[[], Any]:
    import onnxruntime  # type: ignore[import-untyped]

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = str(Path(folder) / "adapter.onnx")
        torch.onnx.export(placed, (vlm, dino), path, dynamo=True, verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = _THREADS
        # Threads that spin between its turns would slow every other way down.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    feed = dict(zip(names, (vlm.numpy(), dino.numpy()), strict=True))
    return lambda: session.run(None, feed)[0]


def write_results(rows: list[dict[str, Any]]) -> None:
    """Write the table with what it was measured on."""
    content = {
        "command": describe_command(),
        "environment": describe_environment(),
        "threads": _THREADS,
        "rounds": ROUNDS,
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Measure every case, print a line each and write the results."""
    rows = []
    for case in CASES:
        rows.append(measure(case))
        print(rows[-1], flush=True)
        write_results(rows)


if __name__ == "__main__":
    main()
