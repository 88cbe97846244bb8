"""The table of launches: the nearest shape decides, and what is written is what is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from foresight.kernels import Launch, LaunchTable, find_launch, find_table, read_table, using_table
from foresight.kernels.candidates import launch_candidates


def make_table() -> LaunchTable:
    entries = {
        "product": {(640, 448, 1792): Launch(rows=64), (1792, 448, 1792): Launch(rows=128)},
        "finish": {(640, 3584, 448): Launch(rows=4, warps=8)},
    }
    return LaunchTable(device="NVIDIA Test", programmatic=2, entries=entries, measured=True)


def test_the_nearest_shape_decides_by_ratio() -> None:
    table = make_table()
    assert table.nearest("product", (640, 448, 1792)).rows == 64
    assert table.nearest("product", (1000, 448, 1792)).rows == 64
    assert table.nearest("product", (4000, 400, 1800)).rows == 128
    assert table.nearest("linear", (77, 448, 448)) == Launch()


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    make_table().write(path)
    assert read_table(path) == make_table()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"product"', '"produce"', "kernel 'produce' must be one of"),
        ('"warps"', '"worps"', "and known fields"),
        ("[640, 448, 1792]", "[640, 448]", "and known fields"),
        ('"rows": 64', '"rows": 48', "rows 48: must be a power of two"),
        ('"splits": 1', '"splits": 0', "splits 0: must be at least 1"),
    ],
)
def test_a_table_with_a_mistake_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "table.json"
    make_table().write(path)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        read_table(path)


def test_another_device_falls_back_on_the_shipped_table() -> None:
    shape = (77, 448, 4096)
    assert find_launch("NVIDIA Unheard Of", "linear", shape) == find_launch("NVIDIA H200", "linear", shape)


def test_a_chosen_table_counts_until_its_block_ends() -> None:
    with using_table(make_table()):
        assert find_table("NVIDIA H200").device == "NVIDIA Test"
    assert find_table("NVIDIA H200").device == "NVIDIA H200"


@pytest.mark.parametrize(
    ("kernel", "shape"),
    [
        ("project", (384, 256, 3584, 448)),
        ("finish", (640, 3584, 448)),
        ("product", (640, 448, 1792)),
        ("linear", (77, 4608, 1152)),
        ("attend", (77, 7, 77, 1)),
    ],
)
def test_every_kernel_has_launches_to_try(kernel: str, shape: tuple[int, ...]) -> None:
    candidates = launch_candidates(kernel, shape)
    assert len(candidates) >= 6
    assert len(set(candidates)) == len(candidates)
