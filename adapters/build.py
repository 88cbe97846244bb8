"""From a configuration to the adapter that it describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from foresight.adapters.adapter import Adapter
from foresight.adapters.bottleneck import BottleneckAdapter
from foresight.adapters.config import AdapterConfig
from foresight.adapters.cross_attention import CrossAttentionAdapter
from foresight.adapters.linear import LinearAdapter
from foresight.adapters.lora import LoRAAdapter
from foresight.adapters.mlp import MLPAdapter
from foresight.adapters.perceiver import PerceiverAdapter
from foresight.adapters.query import ScalableQueryAdapter

__all__ = ["build_adapter"]

_CLASSES: Mapping[str, Callable[[AdapterConfig], Adapter]] = {
    "query": ScalableQueryAdapter,
    "cross_attention": CrossAttentionAdapter,
    "linear": LinearAdapter,
    "mlp": MLPAdapter,
    "bottleneck": BottleneckAdapter,
    "lora": LoRAAdapter,
    "perceiver": PerceiverAdapter,
}


def build_adapter(config: AdapterConfig) -> Adapter:
    """A freshly initialised adapter of `config`, fp32, on the default device."""
    return _CLASSES[config.architecture](config)
