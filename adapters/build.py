"""From a configuration to the adapter that it describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from foresight.adapters.adapter import Adapter
from foresight.adapters.config import AdapterConfig
from foresight.adapters.cross_attention import CrossAttentionAdapter
from foresight.adapters.errors import AdapterError
from foresight.adapters.query import ScalableQueryAdapter

__all__ = ["build_adapter"]

_CLASSES: Mapping[str, Callable[[AdapterConfig], Adapter]] = {
    "query": ScalableQueryAdapter,
    "cross_attention": CrossAttentionAdapter,
}


def build_adapter(config: AdapterConfig) -> Adapter:
    """A freshly initialised adapter of `config`, fp32, on the default device."""
    if config.architecture not in _CLASSES:
        raise AdapterError(f"architecture {config.architecture!r}: must be one of {', '.join(_CLASSES)}")
    return _CLASSES[config.architecture](config)
