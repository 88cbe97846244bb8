"""The adapter itself out of an engine: the weights that every backend falls back to."""

from __future__ import annotations

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from foresight.adapters.adapter import Adapter
from foresight.adapters.build import build_adapter
from foresight.adapters.engine_error import EngineError
from foresight.adapters.engine_file import EngineFile
from foresight.adapters.engine_manifest import WEIGHTS

__all__ = ["load_engine_adapter"]


def load_engine_adapter(
    engine: EngineFile, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Adapter:
    """The engine's adapter in evaluation mode, on `device` and as `dtype`.

    Raises EngineError for weights that are damaged or do not fit the engine's own configuration.
    """
    content = engine.read(WEIGHTS)
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise EngineError(f"{engine.path}: {WEIGHTS} is not a safetensors file ({error})") from error
    with torch.random.fork_rng(devices=[]):
        adapter = build_adapter(engine.manifest.adapter)
    weights = {name: tensor.to(device=device, dtype=dtype) for name, tensor in tensors.items()}
    try:
        adapter.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        # torch lists every tensor on a line of its own; the first one tells.
        reason = str(error).split("\n\t")[1].strip() if "\n\t" in str(error) else str(error)
        raise EngineError(f"{engine.path}: {WEIGHTS} does not fit the configuration: {reason}") from error
    return adapter.eval()
