"""How long one clip's adapter takes on the GPU, by every way to run it, at the full stack's sizes.

Run by test_adapter_latency.py, or as `python -m bench.adapter_latency` where pytest has no benchmark plugin.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.environment import describe_command, describe_environment
from foresight.adapters import Adapter, AdapterConfig, Grid, adapter_config, build_adapter
from foresight.runtime.prepared import PreparedAdapter, prepare

__all__ = ["CASES", "RESULTS", "Case", "Ceilings", "Contest", "measure", "measure_ceilings", "time_host"]

RESULTS = Path(__file__).parent / "results" / "adapter_latency.json"
REPLAYS, TURNS = 300, 20
_DTYPE = torch.bfloat16


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row of the table: `bar_us` is what must be reached, `aim_us` what is wanted."""

    size: str
    vlm_grid: Grid
    bar_us: float
    aim_us: float
    dino_grid: Grid = (1, 16, 16)

    @property
    def name(self) -> str:
        return f"{self.size} {torch.Size(self.dino_grid).numel()}+{torch.Size(self.vlm_grid).numel()}"


CASES = (
    Case(size="10m", vlm_grid=(1, 16, 24), bar_us=40, aim_us=25),
    Case(size="10m", vlm_grid=(4, 16, 24), bar_us=60, aim_us=40),
    Case(size="10m", vlm_grid=(1, 8, 8), bar_us=36, aim_us=22),
    Case(size="100m", vlm_grid=(1, 16, 24), bar_us=170, aim_us=110),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """What this GPU reached just now: bytes copied (read and written) and bf16 products, a second."""

    bytes_per_second: float
    operations_per_second: float


def measure_ceilings() -> Ceilings:
    """Copy 4 GB and multiply two random 8192 x 8192 matrices."""
    source = torch.empty(2**32, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = _median_us(lambda: target.copy_(source), replays=10)
    matrix = torch.randn(8192, 8192, device="cuda", dtype=_DTYPE)
    product = _median_us(lambda: matrix @ matrix, replays=10)
    return Ceilings(
        bytes_per_second=2 * source.numel() / copy * 1e6, operations_per_second=2 * 8192**3 / product * 1e6
    )


class Contest:
    """One case's adapter, its clip, and every way to run it."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        self.case = case
        self.config = adapter_config("query", case.size, vlm_dim=3584, dino_dim=1024)
        self.adapter: Adapter = build_adapter(self.config).eval().to("cuda", _DTYPE)
        tokens = torch.Size(case.vlm_grid).numel()
        self.vlm = torch.randn(1, tokens, 3584, device="cuda", dtype=_DTYPE)
        self.dino = torch.randn(1, torch.Size(case.dino_grid).numel(), 1024, device="cuda", dtype=_DTYPE)
        self.grids: dict[str, Any] = {"vlm_grid": case.vlm_grid, "dino_grid": case.dino_grid}
        self.graph = prepare(self.adapter, "cuda", _DTYPE, (tokens,), path="graph")
        self.persistent: PreparedAdapter | None = None
        # What says no is what `prepare` passes over by itself.
        with suppress(ValueError):
            self.persistent = prepare(self.adapter, "cuda", _DTYPE, (tokens,), path="persistent")

    def eager(self) -> torch.Tensor:
        output: torch.Tensor = self.adapter(self.vlm, self.dino, **self.grids)
        return output

    def call(self, prepared: PreparedAdapter | None = None) -> torch.Tensor:
        """The prepared adapter on features that lie elsewhere: a launch that reads them there, or copies and a replay.

        The one that `prepare` takes by itself unless another is given.
        """
        return (prepared or self.persistent or self.graph)(self.vlm, self.dino, **self.grids)

    def replay(self) -> Callable[[], torch.Tensor]:
        """The graph on features that were written into its buffers: a replay."""
        self.call(self.graph)
        vlm, dino = self.graph.inputs(self.vlm.shape[1])  # type: ignore[attr-defined]
        return partial(self.graph, vlm, dino, **self.grids)

    def prepared_ways(self) -> dict[str, Callable[[], Any]]:
        """Every way to call the two prepared forms, first the quicker of the form that `prepare` takes by itself."""
        ways: dict[str, Callable[[], Any]] = {
            "graph_replay": self.replay(),
            "graph_call": partial(self.call, self.graph),
        }
        if self.persistent is None:
            return ways
        return {"persistent_call": partial(self.call, self.persistent)} | ways

    def compiled(self, mode: str) -> Callable[[], Any]:
        torch._dynamo.reset()
        compiled = torch.compile(self.adapter, mode=mode, dynamic=False)
        run = partial(compiled, self.vlm, self.dino, **self.grids)
        for _ in range(3):
            run()
        return run

    def row(self, ceilings: Ceilings) -> dict[str, Any]:
        """This case's figures but for what `time_host` and `compare` add, times in microseconds."""
        floors = _floors(self.config, self.vlm.shape[1], self.dino.shape[1], ceilings)
        with torch.inference_mode():
            prepared = self.prepared_ways()
            ways = {**prepared, "eager": self.eager, "graph_of_eager": _graph(self.eager)}
            warm = {name: _median_us(run) for name, run in ways.items()}
            cold = {name: _median_us(run, cold=True) for name, run in ways.items()}
        floor, served = max(floors.values()), next(iter(prepared))
        return {
            "case": self.case.name,
            "bar_us": self.case.bar_us,
            "aim_us": self.case.aim_us,
            "warm_l2_us": warm,
            "cold_l2_us": cold,
            "floor_us": floors,
            "served_by": served,
            "share_of_floor": {"warm": floor / warm[served], "cold": floor / cold[served]},
            "prepared": [asdict(each.report()) for each in (self.persistent, self.graph) if each],
        }

    def compare(self, row: dict[str, Any]) -> None:
        """Add to a row of this case what torch.compile makes of the adapter, which takes a minute or two to make it."""
        with torch.inference_mode():
            # The first is timed before the second is compiled, which begins by taking earlier programs away.
            for name, make in (
                ("graph_of_max_autotune", lambda: _graph(self.compiled("max-autotune-no-cudagraphs"))),
                ("reduce_overhead", lambda: self.compiled("reduce-overhead")),
            ):
                run = make()
                row["warm_l2_us"][name] = _median_us(run)
                row["cold_l2_us"][name] = _median_us(run, cold=True)


def _graph(run: Callable[[], Any]) -> Callable[[], None]:
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def _median_us(run: Callable[[], Any], *, replays: int = REPLAYS, cold: bool = False) -> float:
    """The median over `replays` of the time on the GPU; `cold` empties its second-level cache before each."""
    flush = torch.empty(2**28, dtype=torch.uint8, device="cuda") if cold else None
    for _ in range(5):
        run()
    pairs = [(_event(), _event()) for _ in range(replays)]
    torch.cuda.synchronize()
    for begin, end in pairs:
        if flush is not None:
            flush.zero_()
        begin.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(float(begin.elapsed_time(end)) * 1e3 for begin, end in pairs)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def time_host(contests: list[Contest], rows: list[dict[str, Any]]) -> None:
    """Add to each row the median time until a call returns, the GPU idle before each, and the least and most of a turn.

    A host that others use, too, is twice as quick in one second as in the next, so that all cases' calls take turns.
    """
    ways = [
        (row, name, run)
        for contest, row in zip(contests, rows, strict=True)
        for name, run in contest.prepared_ways().items()
    ]
    with torch.inference_mode():
        turns = [[_host_times(run) for _, _, run in ways] for _ in range(TURNS)]
    for (row, name, _), found in zip(ways, zip(*turns, strict=True), strict=True):
        row.setdefault("host_us", {})[name] = statistics.median(time for turn in found for time in turn)
        medians = [statistics.median(turn) for turn in found]
        row.setdefault("host_turns_us", {})[name] = min(medians), max(medians)


def _host_times(run: Callable[[], Any]) -> list[float]:
    """Microseconds until each call of one turn returns."""
    times = []
    for _ in range(REPLAYS // TURNS):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        run()
        times.append((time.perf_counter() - begun) * 1e6)
    torch.cuda.synchronize()
    return times


def _floors(config: AdapterConfig, vlm: int, dino: int, ceilings: Ceilings) -> dict[str, float]:
    """No way is quicker: every weight, input and output once through memory; every product at full rate."""
    h, q, layers = config.hidden_dim, config.num_queries, config.num_layers
    context = vlm + dino
    projections = (vlm * config.vlm_dim + dino * config.dino_dim) * h + context * h * 2 * h * layers
    cross = 2 * q * context * h + q * h * h + 2 * q * h * config.ff_dim
    # The first layer's self-attention and query depend on weights alone.
    within = 5 * q * h * h + 2 * q * q * h
    operations = 2 * (projections + layers * cross + (layers - 1) * within + q * h * config.output_dim)
    weights = (config.vlm_dim + config.dino_dim + config.output_dim) * h
    weights += layers * (3 * h * h + 2 * h * config.ff_dim) + (layers - 1) * 5 * h * h
    moved = 2 * (weights + vlm * config.vlm_dim + dino * config.dino_dim + q * config.output_dim)
    return {
        "bytes": moved / ceilings.bytes_per_second * 1e6,
        "arithmetic": operations / ceilings.operations_per_second * 1e6,
    }


def measure() -> tuple[list[Contest], list[dict[str, Any]]]:
    """Measure every case; print and write the results without torch.compile's, then again with each case's."""
    ceilings, contests = measure_ceilings(), [Contest(case) for case in CASES]
    rows = [contest.row(ceilings) for contest in contests]
    time_host(contests, rows)
    for row in rows:
        _print_row(row)
    _write_results(ceilings, rows)
    # Last, so that what is measured in seconds is not lost with what is compiled for minutes.
    for contest, row in zip(contests, rows, strict=True):
        contest.compare(row)
        _print_row(row)
        _write_results(ceilings, rows)
    return contests, rows


def _write_results(ceilings: Ceilings, rows: list[dict[str, Any]]) -> None:
    """Write the table with what it was measured on."""
    content = {
        "command": describe_command(),
        "environment": describe_environment(),
        "dtype": str(_DTYPE),
        "replays": REPLAYS,
        "turns": TURNS,
        "ceilings": asdict(ceilings),
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _print_row(row: dict[str, Any]) -> None:
    print(
        row["case"],
        {key: row[key] for key in ("warm_l2_us", "cold_l2_us", "host_us", "host_turns_us", "floor_us")},
        flush=True,
    )


if __name__ == "__main__":
    measure()
