"""How long each stage of the nano stack takes for one chunk of 9 frames on this CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from bench.stages import STAGE_NAMES, build_stages
from foresight.models.stack import Stack
from foresight.runtime.loading import default_dtype, untrained_adapter

Stages = dict[str, Callable[[], object]]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def stages(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stages]:
    """Untrained weights: what they are makes no difference to the time."""
    dtype = getattr(torch, request.param)
    if dtype == torch.bfloat16 and default_dtype(torch.device("cpu")) != dtype:
        pytest.skip("this CPU does not compute in bfloat16")
    stack = Stack.load("nano", device="cpu", dtype=dtype, random_weights=True)
    query, latent = (untrained_adapter(stack, mode).to(dtype) for mode in ("conditioning", "latent"))
    with torch.inference_mode():
        yield build_stages(stack, query, latent, tmp_path_factory.mktemp("clips"))


@pytest.mark.parametrize("stage", STAGE_NAMES)
def test_stage(benchmark: Any, stages: Stages, stage: str) -> None:
    benchmark.pedantic(stages[stage], rounds=15, warmup_rounds=2)
