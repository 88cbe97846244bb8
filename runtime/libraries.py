"""A quicker start of a command: its libraries without the parts that serve nothing when models only run.

transformers alone imports torch's graph compiler, distributed tensors and flex attention, and with them
sympy; diffusers imports every model that it has for one of them. Together that is half of the time to the
first frame.
"""

from __future__ import annotations

import gc
import importlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

__all__ = ["import_libraries", "trimmed_imports"]

_LOG = logging.getLogger(__name__)
_MODEL_CLASSES = (
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    "timm.models.vision_transformer",
    "diffusers.models.autoencoders.autoencoder_kl_ltx",
    "diffusers.models.transformers.transformer_ltx",
)
_LEFT_OUT = ("torch._dynamo", "torch.distributed.tensor", "torch.nn.attention.flex_attention", "scipy")
_PUT_OFF = ("diffusers.models.autoencoders", "diffusers.models.transformers", "diffusers.models.unets")


def import_libraries() -> None:
    """Import the libraries' classes that a stack is made of, trimmed; for a process that does nothing else.

    Falls back to importing them whole where a version of a library cannot be trimmed, and logs why (debug).
    """
    before = set(sys.modules)
    try:
        with trimmed_imports():
            _import_model_classes()
    # What a library makes of an empty module is its own affair: any error is possible.
    except Exception as error:
        _LOG.debug("libraries cannot be trimmed, importing them whole: %s: %s", type(error).__name__, error)
        roots = {name.partition(".")[0] for name in _MODEL_CLASSES}
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in roots:
                del sys.modules[name]
        _import_model_classes()


@contextmanager
def trimmed_imports() -> Iterator[None]:
    """Import libraries inside this block without what running models does not need.

    In the place of torch's compiler, distributed tensors, flex attention and scipy stand empty modules, whose
    functions return what they are given (all that decorators need) and whose classes hold nothing. Afterwards
    the real ones can be imported as ever, but libraries imported inside the block cannot compile, shard or
    use flex attention. diffusers' packages are executed when something of their own is first asked for.
    """
    # Nearly everything that an import allocates stays, so that collections in between find nothing.
    collecting = gc.isenabled()
    gc.disable()
    import torch.distributed

    finder = _TrimmingFinder()
    is_available = torch.distributed.is_available
    torch.distributed.is_available = lambda: False
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        torch.distributed.is_available = is_available
        finder.withdraw()
        if collecting:
            gc.enable()


def _import_model_classes() -> None:
    for name in _MODEL_CLASSES:
        importlib.import_module(name)


class _TrimmingFinder(MetaPathFinder):
    """Finds an empty module for what is left out, and a package that waits for what is put off."""

    def __init__(self) -> None:
        # What has been imported stays, and what is not installed must not seem to be.
        self._left_out = [name for name in _LEFT_OUT if name not in sys.modules and _is_installed(name)]
        self._empty = _EmptyLoader()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if any(fullname == name or fullname.startswith(f"{name}.") for name in self._left_out):
            return ModuleSpec(fullname, self._empty, is_package=True)
        if fullname in _PUT_OFF and (found := PathFinder.find_spec(fullname, path)) and found.loader:
            found.loader = _PuttingOffLoader(found.loader)
            return found
        return None

    def withdraw(self) -> None:
        """Take the empty modules back, so that the real ones can be imported."""
        for name in self._empty.given:
            parent, _, child = name.rpartition(".")
            module = sys.modules.pop(name, None)
            if module is not None and vars(sys.modules.get(parent, module)).get(child) is module:
                delattr(sys.modules[parent], child)


class _EmptyLoader(Loader):
    def __init__(self) -> None:
        self.given: list[str] = []

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        self.given.append(spec.name)
        return _EmptyModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Leave the module empty."""


class _EmptyModule(ModuleType):
    """Answers for any name: a class where it looks like one, else a decorator that changes nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {}) if name[:1].isupper() else _unchanged


class _PuttingOffLoader(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _PutOffPackage(spec.name, self._loader)

    def exec_module(self, module: ModuleType) -> None:
        """Leave it to the first question that the package cannot answer."""


class _PutOffPackage(ModuleType):
    """A package whose modules can be imported; its own code runs when a name of its own is first missed."""

    def __init__(self, name: str, loader: Loader) -> None:
        super().__init__(name)
        self._foresight_loader: Loader | None = loader

    def __getattr__(self, name: str) -> Any:
        loader, self._foresight_loader = self._foresight_loader, None
        if name.startswith("__") or loader is None:
            self._foresight_loader = loader
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        loader.exec_module(self)
        return getattr(self, name)


def _is_installed(name: str) -> bool:
    return PathFinder.find_spec(name.partition(".")[0]) is not None


def _unchanged(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    return _unchanged if function is None else function
