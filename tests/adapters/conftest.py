"""Small adapters of every architecture, and features for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from foresight.adapters import Adapter, AdapterConfig, Grid, build_adapter

VLM_DIM, DINO_DIM, OUTPUT_DIM = 24, 16, 12
VLM_GRID: Grid = (2, 3, 4)
DINO_GRID: Grid = (1, 4, 4)
OUTPUT_GRID: Grid = (1, 2, 3)

SIZES = {
    "query": {"hidden_dim": 64, "num_layers": 2, "num_heads": 2, "ff_dim": 96},
    "cross_attention": {"hidden_dim": 64, "num_layers": 2, "num_heads": 2, "ff_dim": 96},
    "perceiver": {"hidden_dim": 64, "num_layers": 2, "num_heads": 2, "ff_dim": 96},
    "bottleneck": {"hidden_dim": 32, "num_layers": 0, "num_heads": 0, "ff_dim": 8},
    "lora": {"hidden_dim": 8, "num_layers": 0, "num_heads": 0, "ff_dim": 8},
    "linear": {"hidden_dim": 0, "num_layers": 0, "num_heads": 0, "ff_dim": 0},
    "mlp": {"hidden_dim": 32, "num_layers": 2, "num_heads": 0, "ff_dim": 48},
}
LATENT = ("cross_attention", "linear", "mlp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What the encoders hand over: a batch of two clips."""

    vlm: Tensor
    dino: Tensor

    def grids(self) -> dict[str, Grid]:
        return {"vlm_grid": VLM_GRID, "dino_grid": DINO_GRID}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small_config() -> Callable[[str], AdapterConfig]:
    def make(architecture: str) -> AdapterConfig:
        latent = architecture in LATENT
        return AdapterConfig(
            architecture=architecture,
            vlm_dim=VLM_DIM,
            dino_dim=DINO_DIM,
            num_queries=6 if latent else 5,
            output_dim=OUTPUT_DIM,
            output_grid=OUTPUT_GRID if latent else None,
            max_grid=(3, 4, 5),
            dino_max_grid=(2, 4, 4),
            **SIZES[architecture],
        )

    return make


@pytest.fixture
def small_adapter(small_config: Callable[[str], AdapterConfig]) -> Callable[[str], Adapter]:
    return lambda architecture: build_adapter(small_config(architecture))


@pytest.fixture
def features() -> Features:
    return Features(vlm=torch.randn(2, 24, VLM_DIM), dino=torch.randn(2, 16, DINO_DIM))
