"""Trimmed imports leave out what they are told to, and nothing of it is missing afterwards."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed

from foresight.runtime import libraries
from foresight.runtime.libraries import trimmed_imports


@pytest.fixture(autouse=True)
def _packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    files = {
        "compiler/__init__.py": "loaded = True",
        "compiler/deep.py": "Tracer = 'the real one'",
        "models/__init__.py": "from models.big import Big",
        "models/big.py": "class Big: ...",
        "models/small.py": "class Small: ...",
        "user.py": "import compiler\nfrom compiler.deep import Tracer\n"
        "@compiler.disable\ndef plain(): return 1\n"
        "@compiler.disable(recursive=True)\ndef called(): return 2\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(libraries, "_LEFT_OUT", ("compiler", "not_installed_at_all"))
    monkeypatch.setattr(libraries, "_PUT_OFF", ("models",))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_what_is_left_out_is_stood_in_for_and_comes_back() -> None:
    with trimmed_imports():
        user = importlib.import_module("user")
        assert not torch.distributed.is_available()
    assert (user.plain(), user.called()) == (1, 2)
    assert isinstance(user.Tracer, type)
    assert torch.distributed.is_available()
    assert importlib.import_module("compiler").loaded
    assert importlib.import_module("compiler.deep").Tracer == "the real one"


def test_what_is_imported_already_stays() -> None:
    compiler = importlib.import_module("compiler")
    with trimmed_imports():
        assert importlib.import_module("compiler.deep").Tracer == "the real one"
    assert sys.modules["compiler"] is compiler


def test_what_is_not_installed_does_not_seem_to_be() -> None:
    with trimmed_imports(), pytest.raises(ModuleNotFoundError):
        importlib.import_module("not_installed_at_all")


def test_a_package_is_executed_when_it_is_asked_for_something() -> None:
    with trimmed_imports():
        small = importlib.import_module("models.small")
    assert small.Small
    assert "models.big" not in sys.modules
    models = importlib.import_module("models")
    assert models.Big is importlib.import_module("models.big").Big
    with pytest.raises(AttributeError, match="no attribute 'Tiny'"):
        _ = models.Tiny


def test_an_error_inside_the_block_restores_everything() -> None:
    finders = list(sys.meta_path)
    with pytest.raises(ZeroDivisionError), trimmed_imports():
        raise ZeroDivisionError
    assert sys.meta_path == finders
    assert torch.distributed.is_available()


@pytest.mark.parametrize("error", ["ImportError", "RuntimeError", "KeyError"])
def test_libraries_that_cannot_be_trimmed_are_imported_whole_and_the_reason_is_logged(
    error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "stubborn.py").write_text(
        f"import compiler\nif compiler.loaded is not True: raise {error}('no compiler')\n"
    )
    monkeypatch.setattr(libraries, "_MODEL_CLASSES", ("stubborn",))
    with caplog.at_level(logging.DEBUG, "foresight.runtime.libraries"):
        libraries.import_libraries()
    assert sys.modules["stubborn"].compiler.loaded is True
    (message,) = caplog.messages
    assert message.startswith(f"libraries cannot be trimmed, importing them whole: {error}: ")
    assert "no compiler" in message


def test_a_library_may_take_an_empty_module_away(tmp_path: Path) -> None:
    (tmp_path / "remover.py").write_text("import sys, compiler\ndel sys.modules['compiler']\n")
    with trimmed_imports():
        importlib.import_module("remover")
    assert importlib.import_module("compiler").loaded
