"""The kernels compile for an H200 wherever Triton is, and fit: nothing spills, and loads are 16 bytes wide."""

from __future__ import annotations

import re

import pytest
import torch

from foresight.kernels import KERNELS, find_table

from .shapes import FULL, Make, Sizes

launches = pytest.importorskip("foresight.kernels.launches", reason="needs Triton")
from .compiled import Compiled, compiling, overwritten_tiles  # noqa: E402

LARGEST_SHARED_MEMORY = 227 * 1024
WIDE = Sizes(
    vlm_tokens=384, dino_tokens=256, vlm_dim=3584, dino_dim=1024, heads=18, head_dim=64, queries=77, ff_dim=4608,
    output_dim=4096,
)  # fmt: skip


def compile_all(sizes: Sizes) -> list[Compiled]:
    make = Make(sizes, torch.bfloat16)
    with compiling() as found:
        launches.encode_context(*make.context())
        launches.product(*make.product())
        for kind in ("up", "down", "out"):
            launches.fused_linear(*make.linear(kind))
        for kind in ("first", "self"):
            launches.attend(*make.attend(kind))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("sizes", "count"), [(FULL, 10), (WIDE, 11)], ids=["10m", "100m"])
def test_the_shipped_launches_fit_an_h200(sizes: Sizes, count: int) -> None:
    found = compile_all(sizes)
    # The wide adapter's down projection is made in parts, which a launch of its own adds.
    assert len(found) == count
    for launch in found:
        assert launch.stack == 0, launch
        assert launch.shared <= LARGEST_SHARED_MEMORY, launch
        assert ("wgmma.mma_async" in launch.ptx) == ("warp_group_dot " in launch.ttgir)
        assert not overwritten_tiles(launch.ttgir), launch.kernel
        assert re.search(
            r"ld\.global[\w.:]*\.v4\.b32|cp\.async\.cg[\w.:]* \[[^]]*\], \[[^]]*\], 0x10", launch.ptx
        )
        waits = launch.ptx.count("griddepcontrol.wait")
        # Once on every way through: the finishing kernel has one for each stream.
        ways = 2 if launch.kernel == "_finish_kernel" else 1
        assert launch.ptx.count("griddepcontrol.launch_dependents") == ways
        # Weights are asked for ahead of the wait.
        prefetches = launch.kernel in ("_linear_kernel", "_product_kernel")
        assert ("cp.async.bulk.prefetch.L2" in launch.ptx) == prefetches
        # The first kernel of the chain waits for nothing.
        assert (waits == 0) == (launch.kernel == "_project_kernel")


@pytest.mark.parametrize(
    ("tiles", "wait", "expected"),
    [(3, "", ["%a"]), (4, "", []), (3, "%done = ttng.warp_group_dot_wait %sum {pendings = 0 : i32}", [])],
)
def test_a_tile_that_is_copied_while_it_is_multiplied_is_found(
    tiles: int, wait: str, expected: list[str]
) -> None:
    copy = "%t{0} = ttg.async_copy_global_to_local %p{0}, %v{0} mask"
    view = "%v{0} = ttg.memdesc_index %a[%i{0}]"
    ahead = [line.format(step) for step in range(3) for line in (view, copy)]
    loop = [view.format(3), "%sum = ttng.warp_group_dot %v3, %b, %acc", wait, view.format(4), copy.format(4)]
    ring = f"%a = ttg.local_alloc : () -> !ttg.memdesc<{tiles}x64x64xbf16>"
    assert overwritten_tiles("\n".join([ring, *ahead, *loop, "scf.yield"])) == expected


def test_the_table_has_every_kernel() -> None:
    table = find_table("NVIDIA H200")
    assert table.device == "NVIDIA H200"
    assert set(table.entries) == set(KERNELS)
