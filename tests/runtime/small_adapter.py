"""A query adapter small enough to be built in every test."""

from __future__ import annotations

from foresight.adapters import AdapterConfig

__all__ = ["small_config"]


def small_config(num_layers: int = 2) -> AdapterConfig:
    """5 queries of width 12 from tokens of widths 24 (VLM) and 16 (DINO)."""
    return AdapterConfig(
        architecture="query",
        vlm_dim=24,
        dino_dim=16,
        hidden_dim=64,
        num_layers=num_layers,
        num_heads=2,
        ff_dim=32,
        num_queries=5,
        output_dim=12,
    )
