"""What this machine is to native code, and why a member of an engine cannot run on it."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from foresight.adapters.engine_manifest import EngineTarget

__all__ = ["EngineHost"]

# What compilers make use of under -march=native; other flags of a processor say nothing about its code.
_INSTRUCTIONS = """
adx aes avx avx2 avx512_4fmaps avx512_4vnniw avx512_bf16 avx512_bitalg avx512_fp16 avx512_vbmi2 avx512_vnni
avx512_vp2intersect avx512_vpopcntdq avx512bw avx512cd avx512dq avx512er avx512f avx512ifma avx512vbmi avx512vl
avx_vnni amx_bf16 amx_int8 amx_tile asimd asimddp asimdhp bf16 bmi1 bmi2 f16c fma gfni i8mm lzcnt movbe
pclmulqdq popcnt sha_ni sse4_1 sse4_2 ssse3 sve sve2 vaes vpclmulqdq
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineHost:
    """A machine as far as native code depends on it.

    `instructions` are the vector extensions of its processor, `gpu` is "sm_90" or the like and empty on the
    CPU, `torch_version` that of torch up to its minor number, on which AOTInductor's packages depend.
    """

    machine: str
    instructions: frozenset[str]
    gpu: str
    torch_version: str

    @classmethod
    def of(cls, device: torch.device | str) -> EngineHost:
        """This machine, with the GPU of `device` where that is one."""
        device = torch.device(device)
        gpu = ""
        if device.type == "cuda":
            major, minor = torch.cuda.get_device_capability(device)
            gpu = f"sm_{major}{minor}"
        version = ".".join(torch.__version__.split(".")[:2])
        return cls(machine=platform.machine(), instructions=_instructions(), gpu=gpu, torch_version=version)

    def refusal(self, target: EngineTarget) -> str | None:
        """Why a member of that target cannot run here, in half a sentence; None if it can."""
        if target.device == "cuda" and not self.gpu:
            return "is for a GPU"
        if target.device == "cpu" and self.gpu:
            return "is for a CPU"
        here = self.gpu if target.device == "cuda" else self.machine
        if target.architecture and target.architecture != here:
            return f"was made for {target.architecture}, this is {here}"
        missing = sorted(set(target.capability.split()) - self.instructions)
        if missing:
            return f"needs a processor with {', '.join(missing)}"
        if target.kind == "aoti" and target.runtime != self.torch_version:
            return f"was made by torch {target.runtime}, here is {self.torch_version}"
        return None


@cache
def _instructions() -> frozenset[str]:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8", errors="replace").splitlines() if cpuinfo.is_file() else []
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return frozenset(_INSTRUCTIONS.split()).intersection(flags.partition(":")[2].split())
