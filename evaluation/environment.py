"""What a figure was measured on: hardware, threads, library versions, and the commit where it is known."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import TypedDict

from foresight import __version__

__all__ = ["ThreadSettings", "describe_hardware", "describe_threads", "find_commit", "library_versions"]

_LIBRARIES = ("torch", "transformers", "diffusers", "timm", "av", "numpy")


def library_versions() -> dict[str, str]:
    """Versions of Foresight, Python and the libraries that do the work, by name."""
    versions = {"foresight": __version__, "python": platform.python_version()}
    return versions | {name: metadata.version(name) for name in _LIBRARIES}


def describe_hardware(device: str) -> str:
    """The processor, how many of its cores this process may use and, for a CUDA device, the GPU's name."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    hardware = f"{_processor()}, {cores} cores"
    if device.startswith("cuda"):
        import torch

        hardware = f"{torch.cuda.get_device_name(device)}; {hardware}"
    return hardware


class ThreadSettings(TypedDict):
    """How many threads compute on a CPU, and how OpenMP was told to let them wait: "default" where it was not."""

    threads: int
    omp_wait_policy: str
    gomp_spincount: str


def describe_threads() -> ThreadSettings:
    """What this process computes with on a CPU.

    The waiting is that of the environment's variables, which OpenMP reads when torch is imported.
    """
    import torch

    return {
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "gomp_spincount": os.environ.get("GOMP_SPINCOUNT", "default"),
    }


def find_commit() -> str | None:
    """The commit that this code is a checkout of; None for an installed package.

    The variable FORESIGHT_COMMIT answers for a copy of the tree without its history.
    """
    if commit := os.environ.get("FORESIGHT_COMMIT"):
        return commit
    git = Path(__file__).resolve().parents[1] / ".git"
    return _read_head(git) if git.is_dir() else None


def _read_head(git: Path) -> str | None:
    head = _read_line(git / "HEAD")
    if head is None or not head.startswith("ref: "):
        return head
    name = head.removeprefix("ref: ")
    if commit := _read_line(git / name):
        return commit
    packed = git / "packed-refs"
    lines = packed.read_text("utf-8").splitlines() if packed.is_file() else []
    return next((line.split()[0] for line in lines if line.endswith(f" {name}")), None)


def _read_line(path: Path) -> str | None:
    return path.read_text("utf-8").strip() or None if path.is_file() else None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text("utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
