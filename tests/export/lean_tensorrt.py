"""NVIDIA's own plugin code without a GPU: the lean bindings under the name of the full package.

Registration, the registry and the validation of ahead-of-time plugins then run as they do on a user's machine;
nothing that needs a driver is touched.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

__all__ = ["lean_tensorrt"]


@contextmanager
def lean_tensorrt() -> Iterator[Any]:
    """`tensorrt` and `tensorrt.plugin` made of the lean bindings; skips the test where they are missing."""
    lean = pytest.importorskip("tensorrt_lean_bindings")
    full = importlib.util.find_spec("tensorrt_bindings")
    if full is None or full.origin is None:
        pytest.skip("the bindings of the full TensorRT are not installed")
    module = ModuleType("tensorrt")
    module.__dict__.update({name: value for name, value in vars(lean).items() if not name.startswith("__")})
    module.__version__ = lean.__version__
    module.__path__ = [str(Path(full.origin).parent)]
    for name in ("TensorFormat", "ITensor", "INetworkDefinition"):
        if not hasattr(module, name):
            setattr(module, name, type(name, (), {"LINEAR": 0, "add_plugin": None}))
    before = {name: each for name, each in sys.modules.items() if name.split(".")[0] == "tensorrt"}
    for name in before:
        del sys.modules[name]
    sys.modules["tensorrt"] = module
    try:
        yield module
    finally:
        for name in [each for each in sys.modules if each.split(".")[0] == "tensorrt"]:
            del sys.modules[name]
        sys.modules.update(before)
