"""A quicker start of a command that only runs models: the libraries' compilers and sharding stay out of it.

transformers alone imports torch's graph compiler, distributed tensors, flex attention and with them sympy,
which makes up half of a command's start and serves nothing here.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["without_compilers"]

_LEFT_OUT = ("torch._dynamo", "torch.distributed.tensor", "torch.nn.attention.flex_attention")


@contextmanager
def without_compilers() -> Iterator[None]:
    """Import libraries inside this block without torch's compiler, distributed tensors and flex attention.

    In their place stand empty modules, whose functions return what they are given (all that decorators need)
    and whose classes hold nothing; afterwards they can be imported as ever, but libraries imported inside the
    block cannot compile, shard or use flex attention. Meant for commands, which own their process; whatever
    is imported already stays as it is.
    """
    import torch.distributed

    finder = _EmptyModules([name for name in _LEFT_OUT if name not in sys.modules])
    is_available = torch.distributed.is_available
    collecting = gc.isenabled()
    # Nearly everything that an import allocates stays, so that collections in between find nothing.
    gc.disable()
    sys.meta_path.insert(0, finder)
    torch.distributed.is_available = lambda: False
    try:
        yield
    finally:
        torch.distributed.is_available = is_available
        sys.meta_path.remove(finder)
        finder.withdraw()
        if collecting:
            gc.enable()


class _EmptyModule(ModuleType):
    """Answers for any name: a class where it looks like one, else a decorator that changes nothing."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {}) if name[:1].isupper() else _unchanged


class _EmptyModules(MetaPathFinder, Loader):
    """Finds an empty module for each of the given names and for whatever lies below them."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._given: list[str] = []

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if any(fullname == name or fullname.startswith(f"{name}.") for name in self._names):
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        self._given.append(spec.name)
        return _EmptyModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Leave the module empty."""

    def withdraw(self) -> None:
        """Take the empty modules back, so that the real ones can be imported."""
        for name in self._given:
            parent, _, child = name.rpartition(".")
            module = sys.modules.pop(name)
            if vars(sys.modules.get(parent, module)).get(child) is module:
                delattr(sys.modules[parent], child)


def _unchanged(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    return _unchanged if function is None else function
