"""The attention plugin against NVIDIA's own registration code, and its kernel as PTX; no GPU, no builder."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .lean_tensorrt import lean_tensorrt

triton = pytest.importorskip("triton")

from foresight.export.attention_ptx import (  # noqa: E402
    TACTICS,
    AttentionShape,
    compile_attention,
    source_hash,
)
from foresight.export.errors import ExportError  # noqa: E402
from foresight.export.tensorrt_plugin import register_plugin  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

SHAPE = AttentionShape(batch=1, queries=77, keys=640, width=448, heads=7, always=0, dtype="bf16")
SHAPES = ((1, 77, 448), (1, 640, 896), (1,), (1, 77, 448))


def create(trt: Any, **attributes: Any) -> Any:
    """The plugin as TensorRT makes it for a network that insists on ahead-of-time code."""
    import tensorrt.plugin as trtp

    kinds = {int: trt.PluginFieldType.INT64, str: trt.PluginFieldType.CHAR}
    fields = [
        trt.PluginField(
            name, value.encode() if isinstance(value, str) else np.array([value]), kinds[type(value)]
        )
        for name, value in attributes.items()
    ]
    creator = trtp._lib.QDP_CREATORS["foresight::attention"]
    return creator.create_plugin(
        "attention",
        "foresight",
        trt.PluginFieldCollection(fields),
        trt.TensorRTPhase.BUILD,
        trt.QuickPluginCreationRequest.STRICT_AOT,
    )


def implement(trt: Any, plugin: Any, *shapes: tuple[int, ...], tactic: int) -> Any:
    """What TensorRT gets from the plugin when it asks for the kernel of a tactic."""
    from tensorrt.plugin._tensor import Shape, TensorDesc

    descriptions = []
    for shape, dtype in zip(shapes, (trt.bfloat16, trt.bfloat16, trt.int32, trt.bfloat16), strict=True):
        description = TensorDesc()
        description.dtype, description.shape = dtype, Shape(shape)
        descriptions.append(description)
    *inputs, output = descriptions
    return plugin.aot_impl_function(*inputs, *plugin.attrs.values(), (output,), tactic)


def test_the_plugin_passes_nvidias_registration_and_makes_a_kernel() -> None:
    with lean_tensorrt() as trt:
        register_plugin(90)
        register_plugin(90)
        plugin = create(trt, num_heads=7, always=0, source_hash=source_hash())
        assert plugin.attrs == {"num_heads": 7, "always": 0, "source_hash": source_hash()}
        name, ptx, launch, extra = implement(trt, plugin, *SHAPES, tactic=1)
        kernel = compile_attention(SHAPE, TACTICS[1], 90)
        assert (name, ptx, len(extra)) == (kernel.name, kernel.ptx, 0)
        import tensorrt.plugin as trtp

        assert isinstance(launch, trtp.KernelLaunchParams)


def test_tensorrt_may_choose_between_all_tactics_in_both_types() -> None:
    with lean_tensorrt() as trt:
        register_plugin(90)
        plugin = create(trt, num_heads=7, always=0, source_hash="x")
        from tensorrt.plugin._tensor import TensorDesc

        inputs = [TensorDesc() for _ in SHAPES[:3]]
        attributes = [plugin.attrs[name] for name in plugin.autotune_attr_names]
        [combination] = plugin.autotune_function(*inputs, *attributes, (TensorDesc(),))
        found = combination._get_combinations()
        types = [[trt.bfloat16] * 2 + [trt.int32, trt.bfloat16], [trt.float16] * 2 + [trt.int32, trt.float16]]
        assert [each.types for each in found] == types
        assert all(sorted(each.tactics) == sorted(TACTICS) for each in found)


def test_shapes_that_are_not_fixed_are_refused() -> None:
    with lean_tensorrt() as trt:
        register_plugin(90)
        plugin = create(trt, num_heads=7, always=0, source_hash="x")
        with pytest.raises(ExportError, match="must be fixed"):
            implement(trt, plugin, SHAPES[0], (1, -1, 896), *SHAPES[2:], tactic=1)


@pytest.mark.parametrize("tactic", TACTICS.values(), ids=str)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_each_tactic_compiles_to_plain_ptx_that_fits(tactic: Any, dtype: str, tmp_path: Path) -> None:
    shape = AttentionShape(batch=1, queries=77, keys=640, width=448, heads=7, always=0, dtype=dtype)
    kernel = compile_attention(shape, tactic, 90)
    assert kernel.shared <= 48 * 1024
    assert kernel.threads == 32 * tactic.warps
    assert kernel.grid == (-(-77 // tactic.rows), 7, 1)
    # Exactly the pointers that the plugin has, and no trace of where it was built.
    header = kernel.ptx[kernel.ptx.index(".entry") : kernel.ptx.index(".reqntid")]
    assert header.count(".param") == 4
    assert ".file" not in kernel.ptx
    assert re.search(r"ld\.global[^\n]*v4|cp\.async[^\n]*0x10", kernel.ptx), "loads of 16 bytes"
    assert "griddepcontrol" not in kernel.ptx
    (tmp_path / "kernel.ptx").write_text(kernel.ptx)
    assert spilled(tmp_path / "kernel.ptx") == 0


def spilled(ptx: Path) -> int:
    """Bytes that the assembler had to keep out of the registers."""
    assembler = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    command = [assembler, "-arch=sm_90a", "-v", ptx, "-o", ptx.with_suffix(".cubin")]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return sum(int(number) for number in re.findall(r"(\d+) bytes spill", told))


@pytest.mark.parametrize(("width", "heads"), [(64, 2), (448, 7), (512, 4)])
def test_every_head_size_fits_into_registers_and_shared_memory(
    width: int, heads: int, tmp_path: Path
) -> None:
    shape = AttentionShape(batch=2, queries=48, keys=100, width=width, heads=heads, always=100, dtype="bf16")
    for tactic in TACTICS.values():
        kernel = compile_attention(shape, tactic, 90)
        (tmp_path / "kernel.ptx").write_text(kernel.ptx)
        assert spilled(tmp_path / "kernel.ptx") == 0
        assert kernel.shared <= 48 * 1024


def test_what_no_kernel_computes_is_refused() -> None:
    with pytest.raises(ExportError, match="fp32"):
        AttentionShape(batch=1, queries=1, keys=1, width=64, heads=1, always=0, dtype="fp32")
    with pytest.raises(ExportError, match="heads 3"):
        AttentionShape(batch=1, queries=1, keys=1, width=64, heads=3, always=0, dtype="bf16")
