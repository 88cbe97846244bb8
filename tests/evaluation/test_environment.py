"""A figure names what it was measured on."""

from __future__ import annotations

import pytest
import torch

from foresight.evaluation.environment import (
    describe_hardware,
    describe_threads,
    find_commit,
    library_versions,
)


def test_threads_and_how_they_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert describe_threads() == {"threads": 3, "omp_wait_policy": "PASSIVE", "gomp_spincount": "default"}


def test_the_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {4, 7}, raising=False)
    assert describe_hardware("cpu").endswith(", 2 cores")


def test_the_libraries_that_do_the_work_are_named() -> None:
    versions = library_versions()
    assert versions["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert {"foresight", "python", "transformers", "diffusers"} <= versions.keys()


def test_a_copy_without_history_is_told_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORESIGHT_COMMIT", "abc1234")
    assert find_commit() == "abc1234"
