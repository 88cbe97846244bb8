"""The names that others import."""

from __future__ import annotations

import foresight.adapters as adapters


def test_all_names_exist_and_are_public() -> None:
    assert sorted(adapters.__all__) == sorted(set(adapters.__all__))
    for name in adapters.__all__:
        assert not name.startswith("_")
        assert hasattr(adapters, name)


def test_the_plans_names_are_there() -> None:
    promised = {
        "LinearAdapter",
        "MLPAdapter",
        "CrossAttentionAdapter",
        "ScalableQueryAdapter",
        "BottleneckAdapter",
        "LoRAAdapter",
        "PerceiverAdapter",
    }
    assert promised <= set(adapters.__all__)
    assert all(issubclass(getattr(adapters, name), adapters.Adapter) for name in promised)
