"""The persistent kernel: exact where its source runs on the CPU, within an H200's limits where it compiles for one."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from foresight.adapters import Adapter, AdapterConfig, build_adapter
from foresight.adapters.packing import PackedAdapter, pack_adapter, positions_table
from foresight.kernels import reference
from foresight.kernels.nvrtc import compile_cuda
from foresight.kernels.persistent import Buffers, PersistentParameters, persistent_source
from foresight.kernels.persistent_kernel import SHARED_MEMORY
from foresight.kernels.persistent_launch import PersistentLaunch
from foresight.kernels.persistent_shape import PersistentShape, divide_up

from ..adapters.trained import as_if_trained
from .emulated import COMPILER, EmulatedKernel

CPU = torch.device("cpu")
DTYPES = [torch.bfloat16, torch.float16]
emulated = pytest.mark.skipif(COMPILER is None, reason="needs g++")

FULL = PersistentShape(
    hidden_dim=448, num_heads=7, ff_dim=1792, output_dim=4096, vlm_dim=3584, dino_dim=1024, num_queries=77,
    num_layers=2, dtype=torch.bfloat16, blocks=132,
)  # fmt: skip
SMALL = PersistentShape(
    hidden_dim=128, num_heads=2, ff_dim=256, output_dim=64, vlm_dim=192, dino_dim=64, num_queries=20, num_layers=2,
    dtype=torch.bfloat16, blocks=16,
)  # fmt: skip
# More layers, tiles of queries and heads, and sizes that no tile divides.
ODD = PersistentShape(
    hidden_dim=192, num_heads=3, ff_dim=96, output_dim=40, vlm_dim=192, dino_dim=64, num_queries=33, num_layers=3,
    dtype=torch.bfloat16, blocks=24,
)  # fmt: skip

# An output whose weights take two turns, several blocks of the contracted axis a warp, more steps a tile than there are
# stages.
LONG = replace(ODD, ff_dim=608, output_dim=1256, vlm_dim=3584, num_layers=2)


@pytest.fixture(scope="session")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("emulated")


class Emulation:
    """An adapter of some shape, its fp32 and rounded references, and its emulated kernel for a number of tokens."""

    def __init__(self, shape: PersistentShape, tokens: tuple[int, int], folder: Path) -> None:
        self.shape, (self.vlm_tokens, self.dino_tokens) = shape, tokens
        self.kernel = EmulatedKernel(shape, folder)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.adapter = _random_adapter(shape)
            # A position of its own for every token.
            self.places = torch.randn(sum(tokens), shape.hidden_dim)
        self.packed = self._pack(shape.dtype)
        weights: Any = self.packed
        self.parameters = PersistentParameters(shape, weights)
        self.buffers = Buffers(shape, *tokens, CPU)

    def _pack(self, dtype: torch.dtype) -> PackedAdapter:
        return pack_adapter(self.adapter, CPU, dtype)

    def features(self, length: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Random features, those of the VLM NaN from `length` on."""
        generator, s = torch.Generator().manual_seed(seed), self.shape
        vlm = torch.randn(1, self.vlm_tokens, s.vlm_dim, generator=generator) + 0.5
        dino = torch.randn(1, self.dino_tokens, s.dino_dim, generator=generator) * 3
        vlm[:, length:] = torch.nan
        return vlm.to(s.dtype), dino.to(s.dtype)

    def launch(self, vlm: Tensor, dino: Tensor, length: int, slow: int = -1) -> Tensor:
        lengths = torch.tensor([length], dtype=torch.int32)
        table = self._table(self.packed)
        self.kernel.launch(self.parameters.fill(vlm, dino, table, lengths, self.buffers), slow)
        return self.buffers.output.clone()

    def _table(self, packed: PackedAdapter) -> Tensor:
        body: Any = self.adapter.get_submodule("body")
        return positions_table(body, packed, (self.dino_tokens, self.vlm_tokens), (None, None)) + self.places

    @torch.no_grad()
    def _reference(self, packed: PackedAdapter, vlm: Tensor, dino: Tensor, length: int) -> Tensor:
        lengths = torch.tensor([length], dtype=torch.int32)
        return packed.forward(vlm, dino, self._table(packed), lengths, reference)[0].float()

    def assert_exact(self, output: Tensor, vlm: Tensor, dino: Tensor, length: int) -> None:
        """No further from fp32 than twice what rounding costs the reference."""
        expected = self._reference(self._pack(torch.float32), vlm.float(), dino.float(), length)
        rounded = self._reference(self.packed, vlm, dino, length)
        bound = 2 * (rounded - expected).abs().max() + 1e-3
        assert (output.float() - expected).abs().max() <= bound

    def assert_nan_reaches_every_output_and_no_later_launch(self, length: int) -> None:
        vlm, dino = self.features(length)
        expected = self.launch(vlm, dino, length)
        spoilt = vlm.clone()
        spoilt[0, length - 1, 5] = torch.nan
        assert self.launch(spoilt, dino, length).isnan().all()
        for _ in range(2):
            assert torch.equal(self.launch(vlm, dino, length), expected)


def _random_adapter(shape: PersistentShape) -> Adapter:
    config = AdapterConfig(
        architecture="query", vlm_dim=shape.vlm_dim, dino_dim=shape.dino_dim, hidden_dim=shape.hidden_dim,
        num_layers=shape.num_layers, num_heads=shape.num_heads, ff_dim=shape.ff_dim,
        num_queries=shape.num_queries, output_dim=shape.output_dim,
    )  # fmt: skip
    return as_if_trained(build_adapter(config))


@emulated
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_is_as_exact_as_the_reference(builds: Path, dtype: torch.dtype) -> None:
    emulation = Emulation(replace(SMALL, dtype=dtype), (40, 24), builds)
    # One launch after the other, because two sets of buffers take turns; at the edges of tiles and of none.
    for seed, length in enumerate((40, 17, 0)):
        vlm, dino = emulation.features(length, seed)
        emulation.assert_exact(emulation.launch(vlm, dino, length), vlm, dino, length)


@emulated
def test_it_is_exact_at_sizes_that_no_tile_divides(builds: Path) -> None:
    emulation = Emulation(ODD, (300, 100), builds)
    vlm, dino = emulation.features(257)
    emulation.assert_exact(emulation.launch(vlm, dino, 257), vlm, dino, 257)


@emulated
def test_it_is_exact_where_a_block_has_one_unit_of_columns_or_none(builds: Path) -> None:
    shape = replace(SMALL, dtype=torch.float16, blocks=40)
    assert shape.groups > shape.hidden_dim // 8
    emulation = Emulation(shape, (40, 24), builds)
    vlm, dino = emulation.features(40)
    emulation.assert_exact(emulation.launch(vlm, dino, 40), vlm, dino, 40)


@emulated
@pytest.mark.parametrize(("num_layers", "slow"), [(2, 0), (1, 7)])
def test_a_warp_far_behind_finds_what_the_others_left(builds: Path, num_layers: int, slow: int) -> None:
    # The last asks for weights.
    emulation = Emulation(replace(LONG, num_layers=num_layers), (40, 24), builds)
    vlm, dino = emulation.features(40)
    together = emulation.launch(vlm, dino, 40)
    emulation.assert_exact(together, vlm, dino, 40)
    assert torch.equal(emulation.launch(vlm, dino, 40, slow), together)


@emulated
def test_it_is_exact_at_the_full_size(builds: Path) -> None:
    # Where the weights of keys and values lie in the place of the chain's.
    emulation = Emulation(FULL, (24, 16), builds)
    vlm, dino = emulation.features(17)
    emulation.assert_exact(emulation.launch(vlm, dino, 17), vlm, dino, 17)


@emulated
def test_it_is_exact_where_everything_takes_more_than_one_turn(builds: Path) -> None:
    emulation = Emulation(LONG, (150, 70), builds)
    # More weights of the output than one turn has place for.
    assert 16 * LONG.hidden_dim * divide_up(LONG.output_dim // 8, LONG.groups) > LONG.region_bytes
    # More steps a block than the pipeline has stages, and blocks with steps of two tiles.
    assert 7 < LONG.team_shares(150, 70).steps < 56
    for seed in range(2):
        vlm, dino = emulation.features(150, seed)
        emulation.assert_exact(emulation.launch(vlm, dino, 150), vlm, dino, 150)


@emulated
def test_nan_in_a_true_token_reaches_every_output_and_no_later_launch(builds: Path) -> None:
    emulation = Emulation(SMALL, (40, 24), builds)
    emulation.assert_nan_reaches_every_output_and_no_later_launch(40)


def test_a_repeated_launch_names_what_a_call_brings_along() -> None:
    adapter = _random_adapter(SMALL)
    weights: Any = pack_adapter(adapter, CPU, SMALL.dtype)
    parameters, seen = PersistentParameters(SMALL, weights), list[tuple[bytes, int]]()
    bound = SimpleNamespace(bind=lambda structure: lambda stream: seen.append((bytes(structure), stream)))
    kernel: Any = SimpleNamespace(parameters=parameters, function=bound)
    table, buffers = torch.zeros(64, SMALL.hidden_dim), Buffers(SMALL, 40, 24, CPU)

    def call() -> tuple[Tensor, Tensor, Tensor]:
        vlm, dino = torch.zeros(1, 40, SMALL.vlm_dim), torch.zeros(1, 24, SMALL.dino_dim)
        return vlm.to(SMALL.dtype), dino.to(SMALL.dtype), torch.tensor([40], dtype=torch.int32)

    vlm, dino, lengths = call()
    launch = PersistentLaunch(kernel, vlm, dino, table, lengths, buffers)
    # The kernel's own structure may be filled for other buffers in between.
    parameters.fill(vlm, dino, table, lengths, Buffers(SMALL, 8, 24, CPU))
    for stream in (7, 8):
        vlm, dino, lengths = call()
        launch(vlm, dino, lengths, stream)
        assert seen[-1] == (bytes(parameters.fill(vlm, dino, table, lengths, buffers)), stream)


@pytest.mark.parametrize(
    ("tokens", "steps", "whole"),
    [
        ((384, 256), 7, True),
        ((1536, 256), 22, False),
        ((64, 256), 4, True),
        ((1, 1), 4, True),
        ((700, 300), 12, False),
    ],
)
def test_teams_share_all_steps_of_the_context_equally(
    tokens: tuple[int, int], steps: int, whole: bool
) -> None:
    shares, first, teams = FULL.team_shares(*tokens), 0, set()
    assert shares.steps == steps
    assert all(0 <= after - before <= steps for before, after in pairwise(shares.first_steps))
    counted = 0
    for count, of_tile, more in ((tokens[0], 56, shares.vlm_counted), (tokens[1], 16, shares.dino_counted)):
        for _ in range(-(-count // 128)):
            # As `team_of` of projection.cuh finds them.
            found = [(counted + step) // steps for step in range(of_tile)]
            for step, team in enumerate(found):
                assert shares.first_steps[team] <= first + step < shares.first_steps[team + 1]
            assert not whole or teams.isdisjoint(found)
            teams |= set(found)
            first, counted = first + of_tile, counted + more
    assert shares.first_steps[FULL.teams] == first


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"dtype": torch.float16}, None),
        ({"dtype": torch.float32}, "torch.float32: must be torch.bfloat16 or torch.float16"),
        ({"num_heads": 14}, "heads of 32: must be 64 wide"),
        ({"ff_dim": 1800}, "widths 1800, 3584, 1024: must be multiples of 32"),
        ({"output_dim": 4100}, "output of 4100: must be a multiple of 8"),
        (
            {"hidden_dim": 1152, "num_heads": 18, "ff_dim": 4608},
            "77 queries of 1152: too much for 132 blocks",
        ),
        ({"blocks": 24}, "77 queries of 448: too much for 24 blocks"),
        ({"num_queries": 257}, "257 queries: at most 256"),
        ({"num_queries": 16, "ff_dim": 3104}, "feed-forward of 3104: at most 3072"),
        ({"output_dim": 5000}, "output of 5000: at most 4992 in 132 blocks"),
        ({"num_layers": 24}, "24 layers of 448: too much for 132 blocks"),
    ],
)
def test_shapes_that_it_refuses(changes: dict[str, Any], reason: str | None) -> None:
    assert replace(FULL, **changes).refusal(SHARED_MEMORY) == reason


def assert_too_little_shared_memory_is_refused(shape: PersistentShape) -> None:
    needed = shape.shared_bytes
    assert shape.refusal(needed) is None
    reason = f"{needed} bytes of shared memory: the device has {needed - 1} a block"
    assert shape.refusal(needed - 1) == reason


def test_a_device_with_too_little_shared_memory_is_refused() -> None:
    assert_too_little_shared_memory_is_refused(FULL)


def assert_it_fits_an_h200(shape: PersistentShape, *, stack: int, waits: int) -> None:
    """Compiled for one, with bytes of `stack` at most and so many waits for warpgroups' products."""
    pytest.importorskip("triton", reason="needs Triton, which brings cuobjdump")
    from .compiled import resource_usage, warpgroup_waits

    try:
        code = compile_cuda(persistent_source(shape), shape.defines(), (9, 0))
    except OSError as error:
        pytest.skip(str(error))
    usage = resource_usage(code)
    assert usage.stack <= stack
    # All threads of a block, and what is kept back for the system.
    assert usage.registers * 256 <= 65_536
    assert shape.shared_bytes + usage.shared <= SHARED_MEMORY
    # The instruction cache: some instructions more cost microseconds.
    assert usage.code <= 128 * 1024
    assert warpgroup_waits(code) == waits


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_full_size_fits_an_h200(dtype: torch.dtype) -> None:
    # A word that is put aside once costs nothing; a loop that spills takes more. Of the projections' waits one a step
    # and one a tile, of keys and values one a tile.
    assert_it_fits_an_h200(replace(FULL, dtype=dtype), stack=8, waits=3)
