"""Backends on a GPU: parity of each with eager, graphs, refusals; run where there is one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from foresight.adapters import (
    WEIGHTS,
    EngineBucket,
    EngineError,
    EngineTarget,
    MemberSource,
    adapter_config,
    build_adapter,
    cuda_driver_refusal,
    find_tensorrt,
    load_engine_adapter,
    save_adapter,
    write_engine,
)
from foresight.adapters.engine_file import EngineFile
from foresight.export.job import export_engine
from foresight.export.options import ExportOptions
from foresight.export.parity import measure_parity, parity_cases
from foresight.runtime.backend import BackendName
from foresight.runtime.backend_choice import open_backend

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    # Of the compilers.
    pytest.mark.filterwarnings("ignore"),
]

BUCKETS = (
    EngineBucket(batch=1, vlm_tokens=384, dino_tokens=256),
    EngineBucket(batch=1, vlm_tokens=1536, dino_tokens=256),
)


@pytest.fixture(scope="module", params=["query", "cross_attention"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine of the 10M adapter at full widths, with all that this machine can make."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("engine")
    grid = (2, 4, 6) if request.param == "cross_attention" else None
    config = adapter_config(request.param, "10m", vlm_dim=3584, dino_dim=1024, output_grid=grid)
    save_adapter(build_adapter(config), folder / "checkpoint", stack_fingerprint="full-1")
    options = ExportOptions(
        checkpoint=folder / "checkpoint",
        output=folder / "adapter.engine",
        targets=("cuda",),
        buckets=tuple(f"{each.batch}x{each.vlm_tokens}x{each.dino_tokens}" for each in BUCKETS),
    )
    result = export_engine(options, say=print)
    assert not result.left_out
    return options.output


@pytest.mark.parametrize("name", ["fused", "aoti", "eager"])
def test_a_backend_is_within_the_bound_of_bfloat16(name: BackendName, engine: Path) -> None:
    device = torch.device("cuda", 0)
    backend = open_backend(
        engine, device=device, dtype=torch.bfloat16, stack_fingerprint="full-1", backend=name
    )
    with EngineFile(engine) as file:
        adapter = load_engine_adapter(file)

    def run(inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        vlm, dino, vlm_grid, dino_grid, lengths = inputs
        return backend(
            vlm.to(device),
            dino.to(device),
            vlm_grid=tuple(vlm_grid.tolist()),
            dino_grid=tuple(dino_grid.tolist()),
            vlm_lengths=lengths.to(device),
        ).clone()

    for bucket in BUCKETS:
        parity = measure_parity(
            adapter, parity_cases(adapter, [bucket], static=True), run, dtype=torch.bfloat16, device=device
        )
        print(f"{engine.parent.name} {name} {bucket}: {parity}")
        assert parity.holds


def test_the_fused_kernels_come_first_without_tensorrt(engine: Path) -> None:
    backend = open_backend(
        engine, device=torch.device("cuda", 0), dtype=torch.bfloat16, stack_fingerprint="full-1"
    )
    assert backend.describe().name == "fused"


def test_packages_hold_the_fused_kernels(engine: Path) -> None:
    with EngineFile(engine) as file:
        packages = [each for each in file.manifest.members if each.target.kind == "aoti"]
        assert [each.target.bucket for each in packages] == list(BUCKETS)
        for each in packages:
            content = file.read(each.name)
            assert b"_attend_kernel" in content, "the attention kernel is not in the package"


def test_a_member_for_another_gpu_is_refused(engine: Path, tmp_path: Path) -> None:
    with EngineFile(engine) as file:
        manifest = file.manifest
        weights, package = file.extract(WEIGHTS, tmp_path), tmp_path / "package"
        package.write_bytes(b"code for another GPU")
    target = EngineTarget(kind="aoti", device="cuda", architecture="sm_42", runtime="2.11", bucket=BUCKETS[0])
    sources = [
        MemberSource(name=WEIGHTS, path=weights, dtype="float16", target=EngineTarget(kind="weights")),
        MemberSource(name="cuda-sm_42.pt2", path=package, dtype="bfloat16", target=target),
    ]
    other = tmp_path / "other.engine"
    write_engine(
        other, sources, adapter=manifest.adapter, stack_fingerprint="full-1", buckets=manifest.buckets
    )
    with pytest.raises(EngineError, match="was made for sm_42, this is sm_"):
        open_backend(
            other,
            device=torch.device("cuda", 0),
            dtype=torch.bfloat16,
            stack_fingerprint="full-1",
            backend="aoti",
        )


def test_a_corrupt_plan_gets_a_clear_error(engine: Path, tmp_path: Path) -> None:
    if cuda_driver_refusal() is not None or find_tensorrt() is None:
        pytest.skip("needs TensorRT's full or lean runtime")
    plan = tmp_path / "adapter.engine"
    plan.write_bytes(b"ftrt" + bytes(range(256)) * 16)
    with EngineFile(engine) as file:
        config = file.manifest.adapter
    with pytest.raises(EngineError, match=r"TensorRT .* refused the plan") as caught:
        open_backend(
            plan,
            device=torch.device("cuda", 0),
            dtype=torch.bfloat16,
            stack_fingerprint="full-1",
            plan_config=config,
        )
    assert "\n" not in str(caught.value)
