"""A configuration refuses what no adapter can be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from foresight.adapters import AdapterConfig, AdapterError

QUERY = AdapterConfig(
    architecture="query",
    vlm_dim=24,
    dino_dim=16,
    hidden_dim=128,
    num_layers=2,
    num_heads=2,
    ff_dim=96,
    num_queries=5,
    output_dim=12,
)
LATENT = replace(QUERY, architecture="cross_attention", num_queries=6, output_grid=(1, 2, 3))
LORA = replace(QUERY, architecture="lora", num_layers=0, num_heads=0)


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (QUERY, {"architecture": "magic"}, "architecture 'magic': must be one of query"),
        (QUERY, {"vlm_dim": 0}, "vlm_dim 0: must be a whole number of at least 1"),
        (QUERY, {"ff_dim": 1.5}, "ff_dim 1.5: must be a whole number"),
        (QUERY, {"num_layers": True}, "num_layers True: must be a whole number"),
        (QUERY, {"num_layers": 0}, "num_layers 0: must be a whole number of at least 1"),
        (QUERY, {"hidden_dim": 100}, "hidden_dim 100: must be a multiple of 32"),
        (QUERY, {"num_heads": 3}, "num_heads 3: hidden_dim 128 must split into heads of 32, 64, 128"),
        (QUERY, {"num_heads": 8}, "num_heads 8: hidden_dim 128 must split into heads of 32, 64, 128"),
        (QUERY, {"max_grid": (1, 2)}, r"max_grid \(1, 2\): must be three numbers"),
        (QUERY, {"dino_max_grid": (1, 0, 2)}, r"dino_max_grid \(1, 0, 2\): every size"),
        (QUERY, {"output_grid": (1, 2, 3)}, r"output_grid \(1, 2, 3\): must be None for query"),
        (LATENT, {"output_grid": None}, "output_grid None: cross_attention needs"),
        (LATENT, {"num_queries": 7}, "num_queries 7: must be 6"),
        (LORA, {"num_heads": 2}, "num_heads 2: must be 0, lora does not use it"),
        (LORA, {"architecture": "bottleneck", "hidden_dim": 30}, "hidden_dim 30: must be a multiple of 4"),
    ],
)
def test_impossible_sizes_are_refused(config: AdapterConfig, change: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        replace(config, **change)


def test_mode_says_which_decoder_input_the_output_is() -> None:
    assert (QUERY.mode, LATENT.mode, LORA.mode) == ("conditioning", "latent", "conditioning")


def test_head_dim_is_the_share_of_one_head() -> None:
    assert (QUERY.head_dim, LORA.head_dim) == (64, 0)
