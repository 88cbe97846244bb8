"""The trainable bridges between the encoders and the decoder."""

from foresight.adapters.adapter import Adapter
from foresight.adapters.body import AdapterBody
from foresight.adapters.bottleneck import BottleneckAdapter
from foresight.adapters.build import build_adapter
from foresight.adapters.checkpoint import load_adapter, read_adapter_config, save_adapter
from foresight.adapters.config import AdapterConfig, Grid
from foresight.adapters.cross_attention import CrossAttentionAdapter
from foresight.adapters.engine_error import EngineDamagedError, EngineError
from foresight.adapters.engine_file import EngineFile, is_engine_archive, read_bare_plan
from foresight.adapters.engine_host import EngineHost
from foresight.adapters.engine_manifest import (
    WEIGHTS,
    EngineBucket,
    EngineManifest,
    EngineMember,
    EngineParity,
    EngineTarget,
)
from foresight.adapters.engine_open import Compiled, open_aoti, open_onnx
from foresight.adapters.engine_plan import TensorRTPlan, find_tensorrt, tensorrt_version
from foresight.adapters.engine_signature import ENGINE_INPUTS, ENGINE_OUTPUT, engine_inputs
from foresight.adapters.engine_weights import load_engine_adapter
from foresight.adapters.engine_writer import MemberSource, write_engine
from foresight.adapters.errors import AdapterError
from foresight.adapters.linear import LinearAdapter
from foresight.adapters.lora import LoRAAdapter
from foresight.adapters.mlp import MLPAdapter
from foresight.adapters.perceiver import PerceiverAdapter
from foresight.adapters.presets import PRESETS, AdapterShape, adapter_config
from foresight.adapters.query import ScalableQueryAdapter
from foresight.kernels.cuda_driver import cuda_driver_refusal

__all__ = [
    "ENGINE_INPUTS",
    "ENGINE_OUTPUT",
    "PRESETS",
    "WEIGHTS",
    "Adapter",
    "AdapterBody",
    "AdapterConfig",
    "AdapterError",
    "AdapterShape",
    "BottleneckAdapter",
    "Compiled",
    "CrossAttentionAdapter",
    "EngineBucket",
    "EngineDamagedError",
    "EngineError",
    "EngineFile",
    "EngineHost",
    "EngineManifest",
    "EngineMember",
    "EngineParity",
    "EngineTarget",
    "Grid",
    "LinearAdapter",
    "LoRAAdapter",
    "MLPAdapter",
    "MemberSource",
    "PerceiverAdapter",
    "ScalableQueryAdapter",
    "TensorRTPlan",
    "adapter_config",
    "build_adapter",
    "cuda_driver_refusal",
    "engine_inputs",
    "find_tensorrt",
    "is_engine_archive",
    "load_adapter",
    "load_engine_adapter",
    "open_aoti",
    "open_onnx",
    "read_adapter_config",
    "read_bare_plan",
    "save_adapter",
    "tensorrt_version",
    "write_engine",
]
