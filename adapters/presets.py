"""The adapters that have a name: sizes of every architecture by nominal number of parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from foresight.adapters.config import LATENT_ARCHITECTURES, AdapterConfig, Grid
from foresight.adapters.errors import AdapterError

__all__ = ["PRESETS", "AdapterShape", "adapter_config"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterShape:
    """The sizes that a preset fixes; the rest follows from the stack."""

    hidden_dim: int
    num_layers: int
    num_heads: int
    ff_dim: int


# Within 5 % of nominal at the full stack's widths (3584, 1024 -> 4096 or 128), the 10m also at nano's.
PRESETS: Mapping[str, Mapping[str, AdapterShape]] = {
    "query": {
        "5m": AdapterShape(hidden_dim=256, num_layers=2, num_heads=4, ff_dim=1536),
        "10m": AdapterShape(hidden_dim=448, num_layers=2, num_heads=7, ff_dim=1792),
        "20m": AdapterShape(hidden_dim=512, num_layers=3, num_heads=8, ff_dim=3072),
        "50m": AdapterShape(hidden_dim=768, num_layers=4, num_heads=12, ff_dim=3840),
        "100m": AdapterShape(hidden_dim=1152, num_layers=4, num_heads=18, ff_dim=4608),
    },
    # No wide output here, so the feed-forward takes its share; both 48 (nano) and 768 (full) queries fit.
    "cross_attention": {
        "5m": AdapterShape(hidden_dim=320, num_layers=2, num_heads=5, ff_dim=1280),
        "10m": AdapterShape(hidden_dim=448, num_layers=2, num_heads=7, ff_dim=2560),
        "20m": AdapterShape(hidden_dim=576, num_layers=3, num_heads=9, ff_dim=2592),
        "50m": AdapterShape(hidden_dim=768, num_layers=4, num_heads=12, ff_dim=4352),
        "100m": AdapterShape(hidden_dim=1152, num_layers=4, num_heads=18, ff_dim=5760),
    },
    # The probe has the size that the encoders' widths give it.
    "linear": {"probe": AdapterShape(hidden_dim=0, num_layers=0, num_heads=0, ff_dim=0)},
    "mlp": {"10m": AdapterShape(hidden_dim=768, num_layers=4, num_heads=0, ff_dim=1088)},
    "bottleneck": {"10m": AdapterShape(hidden_dim=512, num_layers=0, num_heads=0, ff_dim=168)},
    "lora": {"10m": AdapterShape(hidden_dim=64, num_layers=0, num_heads=0, ff_dim=672)},
    "perceiver": {"10m": AdapterShape(hidden_dim=384, num_layers=3, num_heads=6, ff_dim=1280)},
}


def adapter_config(
    architecture: str,
    size: str,
    *,
    vlm_dim: int,
    dino_dim: int,
    output_dim: int | None = None,
    output_grid: Grid | None = None,
    num_queries: int | None = None,
) -> AdapterConfig:
    """The configuration of the preset `size` ("10m") of an architecture for encoders of the given widths.

    `output_dim` defaults to 4096 (LTX-Video's caption width) or 128 (its latent channels). Latent
    architectures need `output_grid` (T', H', W'), which sets their queries; the others have 77 unless
    `num_queries` says otherwise. Raises AdapterError for an unknown architecture or size, and as
    `AdapterConfig` does.
    """
    if architecture not in PRESETS:
        raise AdapterError(f"architecture {architecture!r}: must be one of {', '.join(PRESETS)}")
    sizes = PRESETS[architecture]
    if size not in sizes:
        raise AdapterError(f"size {size!r}: {architecture} has {', '.join(sizes)}")
    shape = sizes[size]
    latent = architecture in LATENT_ARCHITECTURES
    if num_queries is None:
        num_queries = math.prod(output_grid) if latent and output_grid is not None else 77
    return AdapterConfig(
        architecture=architecture,
        vlm_dim=vlm_dim,
        dino_dim=dino_dim,
        hidden_dim=shape.hidden_dim,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        ff_dim=shape.ff_dim,
        num_queries=num_queries,
        output_dim=(128 if latent else 4096) if output_dim is None else output_dim,
        output_grid=output_grid,
    )
