"""The 10M and the 100M adapter on one GPU: what a clip costs, held to the bars of `bench.adapter_latency`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.adapter_latency import CASES, Case, Contest, measure

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    # Of the compiler that this is compared with.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def measured() -> dict[str, tuple[Contest, dict[str, Any]]]:
    """By case: all of one run, whichever are asked for."""
    contests, rows = measure()
    return {row["case"]: (contest, row) for contest, row in zip(contests, rows, strict=True)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_adapter_latency(
    case: Case, measured: dict[str, tuple[Contest, dict[str, Any]]], benchmark: Any
) -> None:
    contest, row = measured[case.name]
    benchmark.extra_info.update(row)

    def call_and_wait() -> None:
        contest.call()
        torch.cuda.synchronize()

    with torch.inference_mode():
        benchmark.pedantic(call_and_wait, rounds=200, iterations=1, warmup_rounds=10)
    assert row["warm_l2_us"][row["served_by"]] <= case.bar_us
    assert row["host_us"][row["served_by"].replace("replay", "call")] < 15
