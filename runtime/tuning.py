"""The command that measures launches on this machine's GPU and writes its table.

One launch at a time is varied while the whole graph is timed, because a launch that is quickest alone need
not be quickest between others that overlap it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from foresight.adapters import adapter_config, build_adapter
from foresight.adapters.packing import PackedAdapter, pack_adapter
from foresight.kernels import Launch, LaunchTable, find_table, table_path, using_table
from foresight.kernels.candidates import launch_candidates

__all__ = ["TUNED_CASES", "AdapterCase", "TuningCase", "TuningOptions", "main", "replay_microseconds", "tune"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningCase:
    """A query adapter's size at the full stack's widths, and the tokens of one clip."""

    size: str = "10m"
    vlm_tokens: int = 384
    dino_tokens: int = 256
    batch: int = 1

    @property
    def name(self) -> str:
        """What it is called in notes, and chosen by."""
        return f"{self.size} {self.dino_tokens}+{self.vlm_tokens}"


TUNED_CASES = (
    TuningCase(),
    TuningCase(vlm_tokens=1536),
    TuningCase(vlm_tokens=64),
    TuningCase(size="100m"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningOptions:
    """Tune the launches of the fused kernels for this machine's GPU."""

    output: Path | None = None
    """Where to write the table; the package's own folder by default."""
    rounds: int = 1
    """How often every launch is varied."""
    cases: str = ""
    """Tune only the cases whose name begins like this ("100m", "10m 256+64"); other launches stay as they are."""
    part: tuple[int, int] = (0, 1)
    """Compile only the (i, n) share of the candidates and write nothing, to fill the compiler's cache."""


@dataclass(frozen=True, slots=True)
class _Recorder(LaunchTable):
    """Notes which launches a forward asks for."""

    seen: dict[tuple[str, tuple[int, ...]], None] = field(default_factory=dict)

    def nearest(self, kernel: str, shape: Sequence[int]) -> Launch:
        self.seen[kernel, tuple(shape)] = None
        # Not super(): a slotted dataclass is another class than the one in whose body this stands.
        return LaunchTable.nearest(self, kernel, shape)


def replay_microseconds(graph: torch.cuda.CUDAGraph, *, replays: int = 50, repeats: int = 5) -> float:
    """The median over `repeats` of a replay's mean duration, back to back, everything warm in cache."""
    times = []
    graph.replay()
    for _ in range(repeats):
        begin, end = (_event() for _ in range(2))
        begin.record()
        for _ in range(replays):
            graph.replay()
        end.record()
        end.synchronize()
        times.append(float(begin.elapsed_time(end)) * 1e3 / replays)
    return statistics.median(times)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


class AdapterCase:
    """One case's tensors, and what its forward costs with a table."""

    def __init__(self, case: TuningCase) -> None:
        config = adapter_config("query", case.size, vlm_dim=3584, dino_dim=1024)
        device, dtype = torch.device("cuda"), torch.bfloat16
        self.name = case.name
        self.packed: PackedAdapter = pack_adapter(build_adapter(config), device, dtype)
        self.vlm = torch.randn(case.batch, case.vlm_tokens, 3584, device=device, dtype=dtype)
        self.dino = torch.randn(case.batch, case.dino_tokens, 1024, device=device, dtype=dtype)
        self.table = torch.randn(case.dino_tokens + case.vlm_tokens, config.hidden_dim, device=device)
        self.lengths = torch.full((case.batch,), case.vlm_tokens, dtype=torch.int32, device=device)

    def forward(self) -> torch.Tensor:
        """The case's clip through the packed adapter, launch by launch."""
        return self.packed.forward(self.vlm, self.dino, self.table, self.lengths)

    def asked(self, table: LaunchTable) -> list[tuple[str, tuple[int, ...]]]:
        """The kernels and shapes of one forward, in order."""
        recorder = _Recorder(device=table.device, programmatic=table.programmatic, entries=table.entries)
        with using_table(recorder):
            self.forward()
        return list(recorder.seen)

    def cost(self, table: LaunchTable) -> float:
        """Microseconds a replay; infinite where a launch asks for more than the device has."""
        from triton.runtime.errors import OutOfResources  # type: ignore[import-untyped]

        graph = torch.cuda.CUDAGraph()
        try:
            with using_table(table):
                self.forward()
                with torch.cuda.graph(graph):
                    self.forward()
        except OutOfResources:
            return float("inf")
        return replay_microseconds(graph)

    def compile(self, table: LaunchTable) -> None:
        """Run the forward once, so that its kernels lie compiled on disk."""
        from triton.runtime.errors import OutOfResources

        with using_table(table):
            try:
                self.forward()
            except OutOfResources as error:
                print(f"{self.name}: {error}")


def tune(
    table: LaunchTable,
    cases: Sequence[TuningCase] = TUNED_CASES,
    *,
    rounds: int = 1,
    note: Callable[[str], None] = print,
) -> LaunchTable:
    """Vary every launch of every case in turn and keep what makes its graph faster; needs a CUDA device.

    Launches that no case asks for stay as they are, and such a table is measured only if it was before.
    """
    tuned, timed = table, set[tuple[str, tuple[int, ...]]]()
    for case in map(AdapterCase, cases):
        best, keys = case.cost(table), case.asked(table)
        chosen = table
        for kernel, shape in keys:
            chosen = _with(chosen, kernel, shape, table.nearest(kernel, shape))
        note(f"{case.name}: {best:.2f} us to begin with")
        for _ in range(rounds):
            for kernel, shape in keys:
                for launch in launch_candidates(kernel, shape):
                    trial = _with(chosen, kernel, shape, launch)
                    cost = case.cost(trial)
                    if cost < 0.995 * best:
                        chosen, best = trial, cost
                note(f"{case.name}: {best:.2f} us after {kernel} {shape}: {chosen.nearest(kernel, shape)}")
        for kernel, shape in keys:
            tuned = _with(tuned, kernel, shape, chosen.nearest(kernel, shape))
        timed.update(keys)
    everything = {(kernel, shape) for kernel, entries in tuned.entries.items() for shape in entries}
    return replace(tuned, measured=table.measured or everything <= timed)


def _with(table: LaunchTable, kernel: str, shape: tuple[int, ...], launch: Launch) -> LaunchTable:
    return table.with_entries(kernel, {**table.entries.get(kernel, {}), shape: launch})


def _compile_share(table: LaunchTable, chosen: Sequence[TuningCase], index: int, count: int) -> None:
    # The cases between differ in lengths alone, for which nothing is compiled anew.
    cases = [AdapterCase(case) for case in dict.fromkeys((chosen[0], chosen[-1]))]
    trials = [
        (case, _with(table, kernel, shape, launch))
        for case in cases
        for kernel, shape in case.asked(table)
        for launch in launch_candidates(kernel, shape)
    ]
    for case, trial in trials[index::count]:
        case.compile(trial)


def main() -> None:
    """Measure, and write the table of this GPU."""
    import tyro

    options = tyro.cli(TuningOptions)
    index, count = options.part
    if not 0 <= index < count:
        raise SystemExit(f"part {index} {count}: must be I N with I from 0 to N - 1")
    cases = [case for case in TUNED_CASES if case.name.startswith(options.cases)]
    if not cases:
        names = ", ".join(case.name for case in TUNED_CASES)
        raise SystemExit(f"cases {options.cases!r}: must be how one of these begins: {names}")
    if not torch.cuda.is_available():
        raise SystemExit("tuning measures on a GPU, and this machine has none that torch can use")
    device = torch.cuda.get_device_name()
    table = find_table(device)
    with torch.inference_mode():
        if options.part[1] > 1:
            return _compile_share(table, cases, *options.part)
        tuned = tune(replace(table, device=device), cases, rounds=options.rounds)
    tuned.write(options.output or table_path(device))
    return None


if __name__ == "__main__":
    main()
