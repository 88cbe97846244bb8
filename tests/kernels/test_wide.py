"""The wide persistent kernel: exact where its source runs on the CPU, within an H200's limits where it compiles."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from foresight.kernels.nvrtc import compile_cuda
from foresight.kernels.persistent import persistent_source
from foresight.kernels.persistent_kernel import SHARED_MEMORY
from foresight.kernels.wide_shape import WideShape
from foresight.kernels.wide_streams import dealt_streams

from .test_persistent import (
    DTYPES,
    Emulation,
    assert_it_fits_an_h200,
    assert_too_little_shared_memory_is_refused,
    emulated,
)

FULL = WideShape(
    hidden_dim=1152, num_heads=18, ff_dim=4608, output_dim=4096, vlm_dim=3584, dino_dim=1024, num_queries=77,
    num_layers=4, dtype=torch.bfloat16, blocks=132,
)  # fmt: skip
SMALL = WideShape(
    hidden_dim=128, num_heads=2, ff_dim=512, output_dim=200, vlm_dim=192, dino_dim=64, num_queries=20, num_layers=2,
    dtype=torch.bfloat16, blocks=16,
)  # fmt: skip
# More layers, tiles of queries and heads, and sizes that no tile divides; a feed-forward narrower than the rest.
ODD = WideShape(
    hidden_dim=192, num_heads=3, ff_dim=96, output_dim=40, vlm_dim=192, dino_dim=64, num_queries=33, num_layers=3,
    dtype=torch.bfloat16, blocks=26,
)  # fmt: skip
# Several blocks of the contracted axis a warp, passes a product, tiles of keys and values, and turns of every ring.
LONG = WideShape(
    hidden_dim=576, num_heads=9, ff_dim=1152, output_dim=1024, vlm_dim=192, dino_dim=64, num_queries=10,
    num_layers=2, dtype=torch.bfloat16, blocks=9,
)  # fmt: skip
# Wide enough for units of keys and values of 64 tokens, as the full size.
BROAD = WideShape(
    hidden_dim=1024, num_heads=16, ff_dim=64, output_dim=40, vlm_dim=64, dino_dim=32, num_queries=5, num_layers=2,
    dtype=torch.bfloat16, blocks=18,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wide")


@emulated
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_is_as_exact_as_the_reference(folder: Path, dtype: torch.dtype) -> None:
    emulation = Emulation(replace(SMALL, dtype=dtype), (40, 24), folder)
    # One launch after the other, because two sets of buffers take turns; at the edges of tiles and of none.
    for seed, length in enumerate((40, 17, 0)):
        vlm, dino = emulation.features(length, seed)
        emulation.assert_exact(emulation.launch(vlm, dino, length), vlm, dino, length)


@emulated
@pytest.mark.parametrize(
    ("shape", "tokens", "length"),
    [
        pytest.param(ODD, (300, 100), 257, id="odd"),
        pytest.param(LONG, (150, 100), 150, id="long"),
        # Slices of the feed-forward narrower than the rest, and blocks that have none.
        pytest.param(replace(SMALL, ff_dim=320, blocks=14), (40, 24), 40, id="slices"),
        # One unit of columns or none.
        pytest.param(replace(SMALL, dtype=torch.float16, blocks=40), (40, 24), 40, id="blocks"),
    ],
)
def test_it_is_exact_at_other_sizes(
    folder: Path, shape: WideShape, tokens: tuple[int, int], length: int
) -> None:
    emulation = Emulation(shape, tokens, folder)
    vlm, dino = emulation.features(length)
    emulation.assert_exact(emulation.launch(vlm, dino, length), vlm, dino, length)


@emulated
@pytest.mark.parametrize(
    ("shape", "tokens", "lengths"),
    [
        # Rounds of units of 64 tokens, the last one with half of a unit of which the other half is nowhere; one
        # unit less, and a last one of which some keys take part; two units.
        pytest.param(BROAD, (270, 70), (270, 201, 0), id="64 tokens a unit"),
        # The same of 32 tokens, more than the ring holds.
        pytest.param(SMALL, (333, 50), (333, 290, 206, 205), id="32 tokens a unit"),
    ],
)
def test_it_is_exact_whatever_part_of_the_context_there_is(
    folder: Path, shape: WideShape, tokens: tuple[int, int], lengths: tuple[int, ...]
) -> None:
    emulation = Emulation(shape, tokens, folder)
    for seed, length in enumerate(lengths):
        vlm, dino = emulation.features(length, seed)
        emulation.assert_exact(emulation.launch(vlm, dino, length), vlm, dino, length)


@emulated
@pytest.mark.parametrize("slow", [0, 7])
@pytest.mark.parametrize("tokens", [(40, 24), (333, 50)], ids=str)
def test_a_warp_far_behind_finds_what_the_others_left(
    folder: Path, tokens: tuple[int, int], slow: int
) -> None:
    emulation, length = Emulation(SMALL, tokens, folder), tokens[0]
    vlm, dino = emulation.features(length)
    together = emulation.launch(vlm, dino, length)
    assert torch.equal(emulation.launch(vlm, dino, length, slow=slow), together)


def test_those_sizes_are_what_they_are_meant_to_be() -> None:
    assert LONG.ff_slices == 2
    # More weights than the ring holds, and of its 250 tokens more tiles of keys and values than blocks.
    assert LONG.ff_dim // 8 // LONG.wide_groups > LONG.slots
    assert 2 * LONG.num_layers * LONG.hidden_dim // LONG.key_value_columns * 2 > LONG.blocks
    slices = replace(SMALL, ff_dim=320, blocks=14)
    assert (slices.ff_slices, slices.groups) == (5, 7)
    assert replace(SMALL, blocks=40).groups > SMALL.hidden_dim // 8
    assert [shape.unit_keys for shape in (FULL, BROAD, LONG, SMALL)] == [64, 64, 32, 32]
    # A ring of fewer units is slower.
    assert FULL.slots == 10


@emulated
def test_nan_in_a_true_token_reaches_every_output_and_no_later_launch(folder: Path) -> None:
    emulation = Emulation(SMALL, (40, 24), folder)
    emulation.assert_nan_reaches_every_output_and_no_later_launch(40)


def test_every_unit_of_a_weight_is_in_one_stream() -> None:
    generator = torch.Generator().manual_seed(0)
    names = ("qkv", "self_out", "up", "down", "output")
    sizes = ((3 * 128, 128), (128, 128), (512, 128), (128, 512), (200, 128))
    weights = [torch.randn(*size, generator=generator) for size in sizes]
    streams = dealt_streams(list(zip(names, weights, strict=True)), SMALL)
    assert streams.shape == (
        sum(weight.numel() for weight in weights) // SMALL.unit_elements,
        SMALL.unit_elements,
    )
    assert torch.equal(
        streams.flatten().sort().values, torch.cat([x.flatten() for x in weights]).sort().values
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"dtype": torch.float16}, None),
        ({"dtype": torch.float32}, "torch.float32: must be torch.bfloat16 or torch.float16"),
        ({"num_heads": 36}, "heads of 32: must be 64 wide"),
        ({"ff_dim": 4600}, "widths 4600, 3584, 1024: must be multiples of 32"),
        ({"output_dim": 4100}, "output of 4100: must be a multiple of 8"),
        ({"num_queries": 257}, "257 queries: at most 256"),
        ({"hidden_dim": 1216, "num_heads": 19}, "width of 1216: must be from 128 to 1152"),
        ({"hidden_dim": 64, "num_heads": 1}, "width of 64: must be from 128 to 1152"),
        ({"num_queries": 128}, "128 queries of 1152: too much for 132 blocks"),
        ({"num_layers": 6}, "6 layers: at most 5"),
        (
            {"num_layers": 5, "ff_dim": 46080},
            "61712 units of weights, 5760 of keys and values: 65536 at most",
        ),
        ({"blocks": 4}, "77 queries of 1152: too much for 4 blocks"),
    ],
)
def test_shapes_that_it_refuses(changes: dict[str, Any], reason: str | None) -> None:
    assert replace(FULL, **changes).refusal(SHARED_MEMORY) == reason


def test_a_context_of_more_tokens_than_a_block_has_places_for_is_refused() -> None:
    FULL.buffer_elements(4000, 96)
    with pytest.raises(
        ValueError, match=r"^context of 4097 tokens: the persistent kernel takes 4096 at most$"
    ):
        FULL.buffer_elements(4000, 97)


def test_a_device_with_too_little_shared_memory_is_refused() -> None:
    assert_too_little_shared_memory_is_refused(FULL)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_full_size_fits_an_h200(dtype: torch.dtype) -> None:
    # Of the projections' waits one a step and one a tile, of keys and values one a step and two a tile.
    assert_it_fits_an_h200(replace(FULL, dtype=dtype), stack=0, waits=5)


def test_blocks_of_one_unit_compile() -> None:
    shape = replace(SMALL, blocks=40)
    try:
        assert compile_cuda(persistent_source(shape), shape.defines(), (9, 0))
    except OSError as error:
        pytest.skip(str(error))
