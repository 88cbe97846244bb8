"""How long each stage of the full stack takes for one chunk of 9 frames at 512x768 on this GPU, bf16, eager."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from bench.stages import STAGE_NAMES, build_stages
from foresight.models.stack import Stack
from foresight.runtime.loading import untrained_adapter

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
Stages = dict[str, Callable[[], object]]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stages]:
    """Untrained weights: what they are makes no difference to the time."""
    stack = Stack.load("full", device="cuda", dtype=torch.bfloat16, random_weights=True)
    query, latent = (
        untrained_adapter(stack, mode).to("cuda", torch.bfloat16) for mode in ("conditioning", "latent")
    )
    with torch.inference_mode():
        yield build_stages(stack, query, latent, tmp_path_factory.mktemp("clips"))


@pytest.mark.parametrize("stage", STAGE_NAMES)
def test_stage(benchmark: Any, stages: Stages, stage: str) -> None:
    def run() -> None:
        stages[stage]()
        torch.cuda.synchronize()

    benchmark.pedantic(run, rounds=20, warmup_rounds=3)
