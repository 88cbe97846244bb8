"""Small adapters of every architecture with shapes to compile them for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from foresight.adapters import Adapter, AdapterConfig, EngineBucket, build_adapter, save_adapter

BUCKET = EngineBucket(batch=1, vlm_tokens=24, dino_tokens=16)
LATENT = ("cross_attention", "linear", "mlp")
SIZES = {
    "query": {"hidden_dim": 64, "num_layers": 2, "num_heads": 2, "ff_dim": 96},
    "cross_attention": {"hidden_dim": 64, "num_layers": 2, "num_heads": 2, "ff_dim": 96},
    "perceiver": {"hidden_dim": 64, "num_layers": 1, "num_heads": 2, "ff_dim": 96},
    "bottleneck": {"hidden_dim": 32, "num_layers": 0, "num_heads": 0, "ff_dim": 8},
    "lora": {"hidden_dim": 8, "num_layers": 0, "num_heads": 0, "ff_dim": 8},
    "linear": {"hidden_dim": 0, "num_layers": 0, "num_heads": 0, "ff_dim": 0},
    "mlp": {"hidden_dim": 32, "num_layers": 1, "num_heads": 0, "ff_dim": 48},
}

MakeAdapter = Callable[[str], Adapter]


@pytest.fixture(autouse=True)
def _single_threaded() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small_adapter(architecture: str) -> Adapter:
    torch.manual_seed(0)
    latent = architecture in LATENT
    config = AdapterConfig(
        architecture=architecture,
        vlm_dim=24,
        dino_dim=16,
        num_queries=6 if latent else 5,
        output_dim=12,
        output_grid=(1, 2, 3) if latent else None,
        **SIZES[architecture],
    )
    return build_adapter(config).eval()


@pytest.fixture
def make_adapter() -> MakeAdapter:
    """Return a function from an architecture's name to a small adapter of it."""
    return small_adapter


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a small query adapter."""
    folder = tmp_path_factory.mktemp("checkpoint") / "conditioning"
    return save_adapter(small_adapter("query"), folder, stack_fingerprint="nano-1", metrics={"psnr_db": 21.5})
