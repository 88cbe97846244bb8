"""The 10M adapter on one GPU: what a clip costs, held to the bars of `bench.adapter_latency`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from bench.adapter_latency import CASES, Case, Ceilings, Contest, measure_ceilings, write_results

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    # Of the compiler that this is compared with.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def ceilings() -> Ceilings:
    return measure_ceilings()


@pytest.fixture(scope="module")
def rows(ceilings: Ceilings) -> Iterator[list[dict[str, Any]]]:
    found: list[dict[str, Any]] = []
    yield found
    write_results(ceilings, found)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_adapter_latency(case: Case, ceilings: Ceilings, rows: list[dict[str, Any]], benchmark: Any) -> None:
    contest = Contest(case)
    row = contest.row(ceilings)
    rows.append(row)
    contest.compare(row)
    benchmark.extra_info.update(row)

    def call_and_wait() -> None:
        contest.call()
        torch.cuda.synchronize()

    with torch.inference_mode():
        benchmark.pedantic(call_and_wait, rounds=200, iterations=1, warmup_rounds=10)
    assert row["warm_l2_us"][row["served_by"]] <= case.bar_us
    assert row["host_us"][row["served_by"].replace("replay", "call")] < 15
