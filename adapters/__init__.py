"""The trainable bridges between the encoders and the decoder."""

from foresight.adapters.adapter import Adapter
from foresight.adapters.body import AdapterBody
from foresight.adapters.build import build_adapter
from foresight.adapters.checkpoint import load_adapter, save_adapter
from foresight.adapters.config import AdapterConfig, Grid
from foresight.adapters.cross_attention import CrossAttentionAdapter
from foresight.adapters.errors import AdapterError
from foresight.adapters.presets import PRESETS, adapter_config
from foresight.adapters.query import ScalableQueryAdapter

__all__ = [
    "PRESETS",
    "Adapter",
    "AdapterBody",
    "AdapterConfig",
    "AdapterError",
    "CrossAttentionAdapter",
    "Grid",
    "ScalableQueryAdapter",
    "adapter_config",
    "build_adapter",
    "load_adapter",
    "save_adapter",
]
