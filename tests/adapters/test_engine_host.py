"""Which machine a member runs on, and what is said where it does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from foresight.adapters import EngineError, EngineHost, EngineTarget, TensorRTPlan, cuda_driver_refusal

CPU = EngineHost(machine="x86_64", instructions=frozenset({"avx2", "fma"}), gpu="", torch_version="2.14")
GPU = replace(CPU, gpu="sm_80")
PACKAGE = EngineTarget(
    kind="aoti", device="cpu", architecture="x86_64", capability="avx2 fma", runtime="2.14"
)
CUDA = EngineTarget(kind="aoti", device="cuda", architecture="sm_90", runtime="2.14")


@pytest.mark.parametrize(
    ("host", "target", "expected"),
    [
        (CPU, PACKAGE, None),
        (CPU, EngineTarget(kind="onnx"), None),
        (GPU, EngineTarget(kind="weights"), None),
        (CPU, replace(PACKAGE, architecture="aarch64"), "was made for aarch64, this is x86_64"),
        (CPU, replace(PACKAGE, capability="avx2 avx512f"), "needs a processor with avx512f"),
        (CPU, replace(PACKAGE, runtime="2.11"), "was made by torch 2.11, here is 2.14"),
        (CPU, CUDA, "is for a GPU"),
        (GPU, PACKAGE, "is for a CPU"),
        (GPU, CUDA, "was made for sm_90, this is sm_80"),
        (GPU, replace(CUDA, architecture="sm_80"), None),
    ],
)
def test_a_member_runs_only_where_its_code_does(
    host: EngineHost, target: EngineTarget, expected: str | None
) -> None:
    assert host.refusal(target) == expected


def test_this_machine_runs_what_it_makes() -> None:
    here = EngineHost.of("cpu")
    target = replace(
        PACKAGE,
        architecture=here.machine,
        capability=" ".join(sorted(here.instructions)),
        runtime=here.torch_version,
    )
    assert here.refusal(target) is None


def test_a_plan_is_refused_in_one_line_where_there_is_no_driver() -> None:
    refusal = cuda_driver_refusal()
    if refusal is None:
        pytest.skip("this machine has a CUDA driver")
    with pytest.raises(EngineError, match="TensorRT cannot be used") as caught:
        TensorRTPlan(b"plan", torch.device("cuda"))
    assert refusal in str(caught.value)
