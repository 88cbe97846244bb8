"""The house rules, each held by its tool; the same checks for a developer and for CI."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import foresight

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = PYPROJECT["tool"]["scikit-build"]["wheel"]["packages"]

CHECKS = {
    "lint": ("ruff", "check", "."),
    "format": ("ruff", "format", "--check", "."),
    "types": ("mypy", "-p", "foresight"),
}


def assert_passes(*command: str, folder: Path = ROOT) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", CHECKS)
def test_tool(name: str) -> None:
    assert_passes(*CHECKS[name])


def test_imports_go_one_way() -> None:
    # From this folder the rooms lie where the import path says, as in an installed package.
    command = ("lint-imports", "--no-cache", "--config", str(ROOT / "pyproject.toml"))
    assert_passes(*command, folder=ROOT / "typings")


def test_every_room_is_mapped_linked_and_described() -> None:
    readme = (ROOT / "README.md").read_text()
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"foresight"}
    assert {name.removeprefix("foresight/") for name in ROOMS} - {"foresight"} == folders
    for folder in folders:
        assert (ROOT / "typings" / "foresight" / folder).resolve() == ROOT / folder
        assert f"`{folder}/`" in readme
        assert (ROOT / folder / "__init__.py").read_text().startswith('"""')


def test_importing_foresight_alone_is_quick() -> None:
    code = "import time; start = time.perf_counter(); import foresight; print(time.perf_counter() - start)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert float(output) < 0.2


def test_the_version_is_the_projects() -> None:
    assert foresight.__version__ == PYPROJECT["project"]["version"]


def test_weights_stay_within_their_sizes() -> None:
    sizes = [path.stat().st_size for path in (ROOT / "models" / "weights").rglob("*") if path.is_file()]
    assert sum(sizes) < 90e6
    assert max(sizes) < 24e6


def test_the_readme_names_no_missing_file() -> None:
    readme = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", readme):
        assert (ROOT / target).exists(), target
