"""Presets have the sizes that their names promise."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from foresight.adapters import PRESETS, AdapterConfig, AdapterError, Grid, adapter_config, build_adapter

FULL_DINO, NANO_DINO = 1024, 192
LATENT = ("cross_attention", "linear", "mlp")


def _cases() -> Iterator[tuple[str, str, int, Grid | None]]:
    for architecture, sizes in PRESETS.items():
        grids: list[Grid | None] = [(2, 4, 6), (2, 16, 24)] if architecture in LATENT else [None]
        for size in sizes:
            for grid in grids:
                yield architecture, size, FULL_DINO, grid
            if size == "10m":
                yield architecture, size, NANO_DINO, grids[0]


def _parameters(config: AdapterConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_adapter(config).parameters())


@pytest.mark.parametrize(("architecture", "size", "dino_dim", "grid"), list(_cases()))
def test_parameters_are_within_five_percent_of_nominal(
    architecture: str, size: str, dino_dim: int, grid: Grid | None
) -> None:
    config = adapter_config(architecture, size, vlm_dim=3584, dino_dim=dino_dim, output_grid=grid)
    nominal = (3584 + dino_dim + 2) * 128 if size == "probe" else int(size.removesuffix("m")) * 1_000_000
    assert abs(_parameters(config) / nominal - 1) <= 0.05


def test_the_scaling_study_has_all_its_sizes() -> None:
    for architecture in ("query", "cross_attention"):
        assert list(PRESETS[architecture]) == ["5m", "10m", "20m", "50m", "100m"]


def test_the_shipped_query_adapter_is_as_designed() -> None:
    config = adapter_config("query", "10m", vlm_dim=3584, dino_dim=192)
    assert (config.hidden_dim, config.num_layers, config.num_heads, config.ff_dim) == (448, 2, 7, 4 * 448)
    assert (config.num_queries, config.output_dim, config.head_dim) == (77, 4096, 64)


def test_latent_queries_follow_the_grid() -> None:
    config = adapter_config("cross_attention", "10m", vlm_dim=3584, dino_dim=192, output_grid=(2, 4, 6))
    assert (config.num_queries, config.output_dim) == (48, 128)


@pytest.mark.parametrize(
    ("architecture", "size", "message"),
    [
        ("magic", "10m", "architecture 'magic': must be one of query"),
        ("query", "11m", "size '11m': query has 5m, 10m"),
        ("cross_attention", "10m", "output_grid None"),
    ],
)
def test_unknown_presets_are_refused(architecture: str, size: str, message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        adapter_config(architecture, size, vlm_dim=3584, dino_dim=1024)
