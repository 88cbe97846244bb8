"""What a prepared adapter asks of CUDA: graphs, streams and how much memory they took."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["capture_graph", "current_stream", "new_pool", "reserved_bytes"]


def capture_graph(
    forward: Callable[[], Tensor], device: torch.device, pool: Any
) -> tuple[Callable[[], None], Tensor]:
    """A function that runs `forward` again as one CUDA graph, and the tensor that it writes each time.

    `pool`, from `new_pool`, may be shared by graphs that never run at once.
    """
    with torch.cuda.device(device):
        outer = torch.cuda.current_stream()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(outer)
        with torch.cuda.stream(stream):
            # Compiles and loads the kernels, which a capture must not do.
            forward()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Other threads go on with their own work meanwhile.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            output = forward()
    return graph.replay, output


def current_stream(device: torch.device) -> int:
    """The handle of the stream that work is put on now; no Stream object is made, to be quick."""
    handle: int = torch._C._cuda_getCurrentRawStream(device.index)
    return handle


def new_pool() -> Any:
    """A memory pool for graphs."""
    return torch.cuda.graph_pool_handle()


def reserved_bytes(device: torch.device) -> int:
    """What torch holds of the device's memory and uses, once its work is done.

    The rest is given back, as a capture does, too.
    """
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved(device)
