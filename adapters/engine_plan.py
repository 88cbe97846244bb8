"""A TensorRT plan as a function: static buffers, one launch or one CUDA-graph replay a call."""

from __future__ import annotations

from importlib import import_module, util
from typing import Any

import torch
from torch import Tensor

from foresight.adapters.engine_error import EngineError
from foresight.adapters.engine_signature import ENGINE_INPUTS, ENGINE_OUTPUT
from foresight.kernels.cuda_driver import cuda_driver_refusal

__all__ = ["TensorRTPlan", "find_tensorrt", "tensorrt_version"]

# The full runtime first; the lean one reads version-compatible plans only. The last is how its wheel names it.
_MODULES = ("tensorrt", "tensorrt_lean", "tensorrt_lean_bindings")


def find_tensorrt() -> str | None:
    """The name of the TensorRT module that is installed, full or lean; None for none. Imports nothing."""
    return next((name for name in _MODULES if util.find_spec(name) is not None), None)


def tensorrt_version() -> str:
    """The version of the TensorRT that `find_tensorrt` names; raises EngineError without it or a driver."""
    return str(_import().__version__)


class TensorRTPlan:
    """A plan, ready on `device`; called with the tensors of `ENGINE_INPUTS`, it returns its output buffer.

    The next call overwrites the output. `shapes` and `dtypes` are those of all inputs and the output, by
    name. Raises EngineError without a CUDA driver or TensorRT, for a plan that TensorRT refuses, and for one
    with other inputs and outputs or without fixed shapes.
    """

    def __init__(self, plan: bytes, device: torch.device) -> None:
        self._trt = _import()
        self.device = device
        self._log = _make_log(self._trt)
        with torch.cuda.device(device):
            self._runtime = self._trt.Runtime(self._log)
            # A version-compatible plan brings a lean runtime of its own, which is host code.
            self._runtime.engine_host_code_allowed = True
            self._engine = self._runtime.deserialize_cuda_engine(plan)
            if self._engine is None:
                version = self._trt.__version__
                raise EngineError(
                    f"TensorRT {version} refused the plan: {self._log.last or 'no reason given'}"
                )
            self._output = self._output_name()
            self._context = self._engine.create_execution_context()
            if self._context is None:
                raise EngineError(f"TensorRT cannot run the plan: {self._log.last or 'no reason given'}")
            self._buffers = self._make_buffers()
            self._graph = self._capture()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The fixed shape of every input and, as `ENGINE_OUTPUT`, of the output."""
        return {self._common(name): tuple(buffer.shape) for name, buffer in self._buffers.items()}

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """The type of every input and, as `ENGINE_OUTPUT`, of the output."""
        return {self._common(name): buffer.dtype for name, buffer in self._buffers.items()}

    def __call__(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Run on the current stream of the device."""
        for name, tensor in zip(ENGINE_INPUTS, inputs, strict=True):
            self._buffers[name].copy_(tensor, non_blocking=True)
        self._graph.replay()
        return self._buffers[self._output]

    def _common(self, name: str) -> str:
        return ENGINE_OUTPUT if name == self._output else name

    def _output_name(self) -> str:
        engine, mode = self._engine, self._trt.TensorIOMode.INPUT
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = {name for name in names if engine.get_tensor_mode(name) == mode}
        outputs = set(names) - inputs
        # The output's name is the compiler's choice.
        if inputs != set(ENGINE_INPUTS) or len(outputs) != 1:
            given = f"{', '.join(sorted(inputs))} -> {', '.join(sorted(outputs))}"
            raise EngineError(f"the plan takes {given}, an adapter's takes {', '.join(ENGINE_INPUTS)}")
        [output] = outputs
        return str(output)

    def _make_buffers(self) -> dict[str, Tensor]:
        buffers = {}
        for name in (*ENGINE_INPUTS, self._output):
            shape = tuple(self._engine.get_tensor_shape(name))
            if min(shape) < 1:
                raise EngineError(f"the plan's {name} has the shape {shape}: every size must be fixed")
            dtype = _dtype(self._trt, self._engine.get_tensor_dtype(name))
            buffers[name] = torch.zeros(shape, dtype=dtype, device=self.device)
            if not self._context.set_tensor_address(name, buffers[name].data_ptr()):
                raise EngineError(f"TensorRT refused the memory of {name}: {self._log.last}")
        return buffers

    def _capture(self) -> torch.cuda.CUDAGraph:
        stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            # Outside of the capture first: a launch that fails inside it would be replayed as stale buffers.
            self._launch(stream)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            self._launch(stream)
        return graph

    def _launch(self, stream: torch.cuda.Stream) -> None:
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise EngineError(f"TensorRT cannot run the plan: {self._log.last or 'no reason given'}")


def _import() -> Any:
    refusal = cuda_driver_refusal()
    if refusal is not None:
        raise EngineError(f"TensorRT cannot be used: {refusal}")
    name = find_tensorrt()
    if name is None:
        raise EngineError("TensorRT is not installed (foresight[tensorrt])")
    try:
        return import_module(name)
    except (ImportError, OSError) as error:
        raise EngineError(f"TensorRT's libraries cannot be loaded ({error})") from error


def _make_log(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        """Keeps TensorRT's last error for the message that the user sees."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.last = " ".join(message.split())[:300]

    return Log()


def _dtype(trt: Any, dtype: Any) -> torch.dtype:
    known = {
        trt.DataType.FLOAT: torch.float32,
        trt.DataType.HALF: torch.float16,
        trt.DataType.BF16: torch.bfloat16,
        trt.DataType.INT32: torch.int32,
        trt.DataType.INT64: torch.int64,
    }
    if dtype not in known:
        raise EngineError(f"the plan has a tensor of type {dtype}, which no adapter has")
    return known[dtype]
