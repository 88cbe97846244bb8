"""An adapter without an engine: the fused kernels where they serve it, eager PyTorch where not, and which it was."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from foresight.adapters import (
    Adapter,
    AdapterConfig,
    EngineBucket,
    EngineError,
    adapter_config,
    build_adapter,
)
from foresight.runtime import backend_weights
from foresight.runtime.adapter_choice import run_adapter
from foresight.runtime.backend import Backend, BackendName

from .small_adapter import small_config

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
SHAPE = EngineBucket(batch=1, vlm_tokens=24, dino_tokens=16)
CONFIG = small_config()


def make_adapter(config: AdapterConfig = CONFIG) -> Adapter:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_adapter(config).eval()


def run(adapter: Adapter, backend: BackendName | None = None, **options: Any) -> Backend:
    options = {"device": CPU, "dtype": torch.float32, "shape": SHAPE} | options
    return run_adapter(adapter, "mine", backend=backend, **options)


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the kernels would have been prepared with, on a machine without a GPU."""
    calls: list[dict[str, Any]] = []

    class Prepared:
        def report(self) -> Any:
            return type("Report", (), {"path": "kernels"})

    def prepare(adapter: Adapter, *arguments: Any, **options: Any) -> Prepared:
        places = {(parameter.device, parameter.dtype) for parameter in adapter.parameters()}
        calls.append({"arguments": arguments, "weights": places} | options)
        return Prepared()

    monkeypatch.setattr(backend_weights, "prepare", prepare)
    return calls


@pytest.fixture
def caught(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "foresight.runtime")
    return caplog


def refusing(error: Exception) -> Any:
    def prepare(*_: Any, **__: Any) -> None:
        raise error

    return prepare


@pytest.mark.parametrize(("backend", "name"), [(None, "eager"), ("eager", "eager"), ("fused", "fused")])
def test_on_the_cpu_it_answers_as_the_adapter_does(
    backend: BackendName | None, name: str, caught: pytest.LogCaptureFixture
) -> None:
    running = run(make_adapter(), backend)
    assert str(running.describe()).startswith(f"{name} (float32 on cpu")
    assert len(caught.records) == (name == "fused")
    features = torch.randn(1, 24, 24), torch.randn(1, 16, 16)
    with torch.inference_mode():
        expected = make_adapter()(*features)
        torch.testing.assert_close(running(*features), expected, rtol=0, atol=2e-5)


def test_on_cuda_the_kernels_come_first_and_are_packed_from_fp32(
    prepared: list[dict[str, Any]], caught: pytest.LogCaptureFixture
) -> None:
    running = run(make_adapter(), device=CUDA, dtype=torch.bfloat16)
    assert str(running.describe()) == "fused (bfloat16 on cuda:0, kernels)"
    assert prepared == [
        {
            "arguments": (CUDA, torch.bfloat16, [24]),
            "weights": {(CPU, torch.float32)},
            "dino_tokens": 16,
            "batch": 1,
        }
    ]
    assert caught.messages == ["mine: backend fused (bfloat16 on cuda:0, kernels)"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("context of 9999 tokens"), "cannot serve it: context of 9999 tokens"),
        (
            RuntimeError("Failed to find\nC compiler"),
            "cannot serve it: RuntimeError: Failed to find C compiler",
        ),
        (ImportError("x" * 5000), "cannot serve it: ImportError: xxx"),
    ],
)
def test_what_the_kernels_refuse_runs_eagerly_and_the_log_says_why(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch, caught: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backend_weights, "prepare", refusing(error))
    monkeypatch.setattr(Adapter, "to", lambda self, *_: self)
    assert run(make_adapter(), device=CUDA, dtype=torch.bfloat16).describe().name == "eager"
    (message,) = caught.messages
    assert message.startswith("mine: backend eager (")
    assert f"; passed over fused: the fused kernels {reason}" in message
    assert "\n" not in message
    assert len(message) < 400


def test_an_architecture_without_kernels_is_refused_where_they_are_named() -> None:
    grid = (2, 4, 6)
    adapter = make_adapter(adapter_config("mlp", "10m", vlm_dim=24, dino_dim=16, output_grid=grid))
    with pytest.raises(
        EngineError, match=r"^mine: cannot be run here \(fused: .*architecture 'mlp'"
    ) as caught:
        run(adapter, "fused")
    assert "\n" not in str(caught.value)


def test_a_device_that_fails_is_not_taken_for_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    monkeypatch.setattr(backend_weights, "prepare", refusing(error))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run(make_adapter(), device=CUDA, dtype=torch.bfloat16)
