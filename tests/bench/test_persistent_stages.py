"""The stages of the persistent kernels: every stamp has its name, and times are those since a block's start."""

from __future__ import annotations

import pytest
import torch

from bench.persistent_stages import stage_rows, stage_times
from foresight.adapters import adapter_config
from foresight.kernels.persistent import STAMPS
from foresight.runtime.persistent import persistent_shape


@pytest.mark.parametrize("size", ["10m", "100m"])
def test_stages_are_told_in_their_order_and_those_left_out_are_not(size: str) -> None:
    config = adapter_config("query", size, vlm_dim=3584, dino_dim=1024)
    shape = persistent_shape(config, torch.bfloat16, 132)
    # Three launches, two blocks: the second starts later and takes 100 clocks more. No block comes by stamp 4.
    stamps = torch.arange(STAMPS).mul(1000).add(5000).expand(3, 2, STAMPS).clone()
    stamps[:, 1] += 70_000
    stamps[:, 1, 1:] += 100
    stamps[..., 4] = 0
    times = stage_times(stamps)
    assert times[1].tolist() == [1000, 1100]
    rows = stage_rows(shape, times, 1000)
    assert [row["stage"] for row in rows[:2]] == ["encoders' projections", "context"]
    assert "keys and values" not in {row["stage"] for row in rows}
    assert rows[-1]["stage"] == "output"
    assert sum(row["took_us"] for row in rows) == pytest.approx(rows[-1]["latest_us"])
    assert rows[0]["latest_us"] == pytest.approx(1.1)
