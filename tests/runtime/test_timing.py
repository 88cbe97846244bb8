"""Stages are timed where they run and listed in their order."""

from __future__ import annotations

import time

import pytest
import torch

from foresight.runtime.timing import STAGES, StageClock, peak_gpu_memory_mb, peak_memory_mb


def test_a_stage_takes_what_it_takes() -> None:
    clock = StageClock()
    for seconds in (0.05, 0.01, 0.02):
        with clock.stage("vae"):
            time.sleep(seconds)
    timing = clock.timings()["vae"]
    assert timing.calls == 3
    # A busy machine sleeps longer, never shorter.
    assert timing.total_ms >= 80
    assert timing.first_ms >= 50
    assert 20 <= timing.median_ms < timing.total_ms


def test_stages_are_listed_in_their_order() -> None:
    clock = StageClock()
    for name in ("quality", *reversed(STAGES)):
        clock.add(name, 1.0)
    assert list(clock.timings()) == [*STAGES, "quality"]


def test_memory_is_in_megabytes() -> None:
    block = bytearray(300_000_000)
    block[::4096] = b"x" * len(block[::4096])
    assert 300 < peak_memory_mb() < 20_000
    assert peak_gpu_memory_mb(torch.device("cpu")) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu_the_device_is_timed_not_the_host() -> None:
    clock = StageClock("cuda")
    matrix = torch.randn(4096, 4096, device="cuda")
    torch.cuda.synchronize()
    begun = time.perf_counter()
    with clock.stage("vae"):
        for _ in range(50):
            matrix @ matrix
    launched = (time.perf_counter() - begun) * 1e3
    assert clock.timings()["vae"].total_ms > launched
