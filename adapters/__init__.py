"""The trainable bridges between the encoders and the decoder."""

from foresight.adapters.adapter import Adapter
from foresight.adapters.body import AdapterBody
from foresight.adapters.bottleneck import BottleneckAdapter
from foresight.adapters.build import build_adapter
from foresight.adapters.checkpoint import load_adapter, save_adapter
from foresight.adapters.config import AdapterConfig, Grid
from foresight.adapters.cross_attention import CrossAttentionAdapter
from foresight.adapters.errors import AdapterError
from foresight.adapters.linear import LinearAdapter
from foresight.adapters.lora import LoRAAdapter
from foresight.adapters.mlp import MLPAdapter
from foresight.adapters.perceiver import PerceiverAdapter
from foresight.adapters.presets import PRESETS, AdapterShape, adapter_config
from foresight.adapters.query import ScalableQueryAdapter

__all__ = [
    "PRESETS",
    "Adapter",
    "AdapterBody",
    "AdapterConfig",
    "AdapterError",
    "AdapterShape",
    "BottleneckAdapter",
    "CrossAttentionAdapter",
    "Grid",
    "LinearAdapter",
    "LoRAAdapter",
    "MLPAdapter",
    "PerceiverAdapter",
    "ScalableQueryAdapter",
    "adapter_config",
    "build_adapter",
    "load_adapter",
    "save_adapter",
]
