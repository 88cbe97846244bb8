"""Where the time goes inside the persistent kernel, by the clocks that its blocks note as they pass.

Run as `python -m bench.persistent_stages`, which writes bench/results/persistent_stages.json. The kernel is compiled to
note them, which costs it a little.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.adapter_latency import CASES, Case
from bench.environment import describe_command, describe_environment
from foresight.adapters import AdapterBody, adapter_config, build_adapter
from foresight.adapters.packing import pack_adapter, positions_table
from foresight.kernels.persistent import STAMPS, Buffers
from foresight.kernels.persistent_kernel import PersistentKernel, persistent_blocks
from foresight.kernels.persistent_shape import PersistentShape
from foresight.kernels.wide_shape import WideShape
from foresight.runtime.persistent import persistent_shape

__all__ = ["RESULTS", "main", "stage_names", "stage_rows", "stage_times"]

RESULTS = Path(__file__).parent / "results" / "persistent_stages.json"

_LAUNCHES = 50
_DTYPE = torch.bfloat16
_CONTEXT = {1: "encoders' projections", 3: "context", 4: "keys and values"}
_KINDS = ("qkv", "self-attention", "self out", "cross-attention", "cross out", "up", "down")
# A layer's steps of the wide kernel and where their stamps begin; the first layer starts at its cross-attention.
_WIDE_LAYER = 14
_WIDE_STAMPS = {
    "qkv": 0,
    "self-attention": 12,
    "self out": 2,
    "query": 4,
    "cross-attention": 13,
    "cross out": 6,
    "up": 8,
    "down": 10,
}


def stage_names(shape: PersistentShape) -> dict[int, str]:
    """What has happened at a stamp, by its index, in order; see `stamp` in the kernel."""
    if isinstance(shape, WideShape):
        return _wide_stage_names(shape)
    steps = [f"{kind} {layer}" for layer in range(shape.num_layers) for kind in _KINDS]
    steps.append("output")
    names = dict(_CONTEXT)
    # The first layer's self-attention and its output are constants.
    for step in range(_KINDS.index("cross-attention"), len(steps)):
        names |= {6 + 2 * step: f"{steps[step]}: input", 7 + 2 * step: steps[step]}
    return names


def _wide_stage_names(shape: WideShape) -> dict[int, str]:
    steps = [
        (f"{kind} {layer}", layer * _WIDE_LAYER + first)
        for layer in range(shape.num_layers)
        for kind, first in _WIDE_STAMPS.items()
    ]
    names = dict(_CONTEXT)
    for step, first in [
        *steps[list(_WIDE_STAMPS).index("cross-attention") :],
        ("output", shape.num_layers * _WIDE_LAYER),
    ]:
        names |= {6 + first: step} if "attention" in step else {6 + first: f"{step}: input", 7 + first: step}
    return names


def stage_times(stamps: Tensor) -> Tensor:
    """Clocks since each block's start, of `stamps` [launches, blocks, STAMPS]: [STAMPS, 2], median and latest block.

    A median over launches; NaN where no block came by.
    """
    times = (stamps - stamps[..., :1]).double().masked_fill(stamps == 0, torch.nan)
    blocks = times.nanmedian(0).values
    latest = blocks.nan_to_num(nan=-torch.inf).amax(0)
    return torch.stack([blocks.nanmedian(0).values, latest.masked_fill(latest.isinf(), torch.nan)], dim=1)


def _measure(case: Case) -> tuple[PersistentShape, Tensor]:
    device, config = torch.device("cuda", 0), adapter_config("query", case.size, vlm_dim=3584, dino_dim=1024)
    # Compiled so that blocks note the clock.
    shape = replace(persistent_shape(config, _DTYPE, persistent_blocks(device)), stamps=STAMPS)
    torch.manual_seed(0)
    adapter = build_adapter(config).eval()
    weights: Any = pack_adapter(adapter, device, _DTYPE)
    kernel = PersistentKernel(shape, weights, device)
    vlm_tokens, dino_tokens = (torch.Size(grid).numel() for grid in (case.vlm_grid, case.dino_grid))
    buffers = Buffers(shape, vlm_tokens, dino_tokens, device)
    body = adapter.get_submodule("body")
    assert isinstance(body, AdapterBody)
    table = positions_table(body, weights, (dino_tokens, vlm_tokens), (case.dino_grid, case.vlm_grid))
    vlm = torch.randn(1, vlm_tokens, config.vlm_dim, device=device, dtype=_DTYPE)
    dino = torch.randn(1, dino_tokens, config.dino_dim, device=device, dtype=_DTYPE)
    lengths = torch.tensor([vlm_tokens], dtype=torch.int32, device=device)
    stamps = []
    for _ in range(_LAUNCHES):
        kernel.launch(vlm, dino, table, lengths, buffers, torch.cuda.current_stream().cuda_stream)
        torch.cuda.synchronize()
        stamps.append(buffers.stamps.cpu())
    # The first launches find nothing in the cache.
    return shape, stage_times(torch.stack(stamps[5:]))


def stage_rows(shape: PersistentShape, times: Tensor, clocks_per_us: float) -> list[dict[str, Any]]:
    """What `stage_times` found, in order and in microseconds: since the start, and what the latest block took."""
    rows, before = list[dict[str, Any]](), 0.0
    for index, name in stage_names(shape).items():
        median, latest = (times[index] / clocks_per_us).tolist()
        # No block comes by what a layer leaves out.
        if latest == latest:
            rows.append({"stage": name, "median_us": median, "latest_us": latest, "took_us": latest - before})
            before = latest
    return rows


def main() -> None:
    """Print a table for every case, in microseconds at the GPU's highest clock, and write the results."""
    clocks_per_us = torch.cuda.get_device_properties(0).clock_rate / 1e3
    cases = {}
    for case in CASES:
        shape, times = _measure(case)
        cases[case.name] = stage_rows(shape, times, clocks_per_us)
        print(f"{case.name}: microseconds since the start, median and latest block, and what the latest took")
        for row in cases[case.name]:
            print("    {stage:24} {median_us:8.2f} {latest_us:8.2f} {took_us:8.2f}".format(**row), flush=True)
    content = {
        "command": describe_command(),
        "environment": describe_environment(),
        "dtype": str(_DTYPE),
        "launches": _LAUNCHES,
        "cases": cases,
    }
    RESULTS.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
