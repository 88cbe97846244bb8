"""Where a prepared adapter's time goes: the cost of its graph, cut off after every operator in turn.

Run as `python -m bench.adapter_stages`. It also says what overlapping the launches is worth.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch

from foresight.adapters import packing
from foresight.kernels import LaunchTable, find_table, implementation, using_table
from foresight.runtime.tuning import TUNED_CASES, AdapterCase, replay_microseconds

__all__ = ["main"]


class _EnoughError(Exception):
    """Ends a forward after as many operators as were wanted."""


class _Counting:
    """The operators, of which only the first `limit` run."""

    def __init__(self, limit: int) -> None:
        self.limit, self.names, self._real = limit, list[str](), implementation(torch.empty(0, device="cuda"))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            if len(self.names) == self.limit:
                raise _EnoughError
            self.names.append(name)
            return getattr(self._real, name)(*arguments)

        return run


def _using(operators: Any) -> Any:
    return patch.object(packing, "implementation", lambda _: operators)


def _costs(case: AdapterCase, table: LaunchTable) -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    last = 0.0
    with using_table(table):
        case.forward()
        while True:
            operators, graph = _Counting(len(found) + 1), torch.cuda.CUDAGraph()
            with _using(operators), torch.cuda.graph(graph), suppress(_EnoughError):
                case.forward()
            if len(operators.names) == len(found):
                return found
            cost = replay_microseconds(graph)
            found.append((operators.names[-1], cost - last))
            last = cost


def main() -> None:
    """Print a table for every case that is tuned."""
    with torch.inference_mode():
        table = find_table(torch.cuda.get_device_name())
        for case in map(AdapterCase, TUNED_CASES):
            for programmatic in (0, 1, 2):
                cost = case.cost(replace(table, programmatic=programmatic))
                print(f"{case.name}: overlap {programmatic}: {cost:.2f} us")
            for name, cost in _costs(case, table):
                print(f"    {name:16} {cost:6.2f} us", flush=True)


if __name__ == "__main__":
    main()
