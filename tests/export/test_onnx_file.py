"""ONNX files: checked, portable, and the same function in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from foresight.adapters import ENGINE_INPUTS, EngineBucket, open_onnx
from foresight.export.onnx_file import ONNX_OPSET, check_onnx, export_onnx
from foresight.export.parity import measure_parity, parity_cases
from foresight.export.tensorrt_network import export_network

from .conftest import BUCKET, SIZES, MakeAdapter

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


QUICK = ("query", "linear", "lora")
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in sorted(SIZES.keys() - set(QUICK))]


@pytest.mark.parametrize("architecture", [*QUICK, *OTHERS])
def test_onnx_runtime_answers_as_eager_does_for_any_shape(
    architecture: str, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    adapter, path = make_adapter(architecture), tmp_path / "model.onnx"
    export_onnx(adapter, BUCKET, path)
    shapes = [BUCKET, EngineBucket(batch=3, vlm_tokens=40, dino_tokens=9)]
    parity = measure_parity(
        adapter, parity_cases(adapter, shapes, static=False), open_onnx(path.read_bytes())
    )
    assert parity.max_error < 1e-5


def test_the_file_is_plain_and_says_nothing_of_this_machine(
    make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    export_onnx(make_adapter("query"), BUCKET, path)
    model = onnx.load(path)
    assert {node.domain for node in model.graph.node} == {""}
    assert [entry.version for entry in model.opset_import] == [ONNX_OPSET]
    assert [each.name for each in model.graph.input] == list(ENGINE_INPUTS)
    dims = [dim.dim_param for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert dims[:2] == ["batch", "vlm_tokens"]
    assert str(Path(__file__).parents[2]).encode() not in path.read_bytes()


@pytest.mark.parametrize("plugins", [True, False])
def test_the_network_for_tensorrt_is_sound(plugins: bool, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    path = tmp_path / "network.onnx"
    export_network(make_adapter("query"), BUCKET, path, dtype=torch.bfloat16, plugins=plugins)
    model = onnx.load(path)
    onnx.checker.check_model(model)
    shapes = onnx.shape_inference.infer_shapes(model, check_type=True).graph
    output = shapes.output[0].type.tensor_type
    assert output.elem_type == onnx.TensorProto.BFLOAT16
    assert [dim.dim_value for dim in output.shape.dim] == [1, 5, 12]
    own = [node for node in model.graph.node if node.domain == "foresight"]
    # Two layers: the first self-attention is a constant.
    assert [node.op_type for node in own] == ["attention"] * (3 if plugins else 0)
    for node in own:
        given = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        assert given["num_heads"] == 2
        assert len(given["source_hash"]) == 16
        assert given["always"] == (0 if node is own[0] or node is own[2] else 5)


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x07 not a model")
    with pytest.raises(Exception, match=r"(?i)parse|model"):
        check_onnx(path)
    with pytest.raises(ValueError, match="ONNX Runtime refused the file"):
        open_onnx(path.read_bytes())
