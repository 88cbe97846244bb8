"""Threads wait briefly unless the environment says otherwise, and torch is not imported before they are told."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from foresight.runtime.waiting import wait_briefly


def test_what_the_environment_says_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    wait_briefly()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    assert os.environ.pop("GOMP_SPINCOUNT") == "1000"


@pytest.mark.parametrize("command", ["reconstruct", "serve"])
def test_a_command_is_told_before_torch_is_there(command: str) -> None:
    code = f"import sys, foresight.runtime.{command}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
