"""The adapter as native code: packages of torch's AOTInductor for a CPU and for a GPU."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn

from foresight.adapters import Adapter, EngineBucket
from foresight.export.parity import example_inputs

__all__ = ["MOST_CLIPS", "MOST_TOKENS", "export_aoti"]

MOST_CLIPS, MOST_TOKENS = 64, 8192


def export_aoti(
    module: nn.Module,
    adapter: Adapter,
    bucket: EngineBucket,
    path: Path,
    *,
    dtype: torch.dtype,
    static: bool = False,
) -> None:
    """Compile `module`, which computes what `adapter` does from `ENGINE_INPUTS`, for the device that it is on.

    A `static` package takes only the bucket's shape; else batch and numbers of tokens are free, and the bucket
    sizes the example. Raises what torch's compiler raises.
    """
    device = next(iter(module.state_dict().values())).device
    if not static:
        # A dimension of 1 would be frozen.
        bucket = EngineBucket(
            batch=max(2, bucket.batch),
            vlm_tokens=max(4, bucket.vlm_tokens),
            dino_tokens=max(4, bucket.dino_tokens),
        )
    inputs = tuple(each.to(device) for each in example_inputs(adapter, bucket, dtype))
    batch = torch.export.Dim("batch", min=1, max=MOST_CLIPS)
    vlm, dino = (torch.export.Dim(name, min=2, max=MOST_TOKENS) for name in ("vlm_tokens", "dino_tokens"))
    shapes = None if static else ({0: batch, 1: vlm}, {0: batch, 1: dino}, None, None, {0: batch})
    with warnings.catch_warnings(), torch.no_grad():
        # torch's compiler calls its own deprecated functions.
        warnings.simplefilter("ignore")
        program = torch.export.export(module, inputs, dynamic_shapes=shapes)
        # Freezing lets a CPU's weights be packed for its own products.
        configs = {"freezing": device.type == "cpu"}
        torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=configs)
