"""The backends of the shipped adapter's engine: is the one that is taken by default the quickest?"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.backends import Contest, make_engine

pytestmark = [
    pytest.mark.slow,
    # Of the compilers.
    pytest.mark.filterwarnings("ignore"),
]

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
        ],
    ),
]


@pytest.fixture(scope="module", params=DEVICES)
def contest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Contest:
    return Contest(make_engine(tmp_path_factory.mktemp("engine")), torch.device(request.param))


def test_backends(contest: Contest, benchmark: Any) -> None:
    rows = contest.rows()
    contest.write(rows)
    benchmark.extra_info["rows"] = rows
    with torch.inference_mode():
        benchmark.pedantic(contest.call, args=(contest.default,), rounds=20, warmup_rounds=3)
    assert all(row["max_error"] <= row["allowed_error"] for row in rows)
    quickest = min(row["median_ms"] for row in rows)
    [chosen] = [row for row in rows if row["default"]]
    # Within what differs from run to run.
    assert chosen["median_ms"] <= 1.15 * quickest
