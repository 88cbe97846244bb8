from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from foresight.media import FrameBatch


def make(**changes: Any) -> FrameBatch:
    values: dict[str, Any] = {
        "frames": np.zeros((3, 4, 6, 3), np.uint8),
        "timestamps": np.array([0.0, 0.1, 0.2]),
        "fps": Fraction(10),
    }
    return FrameBatch(**(values | changes))


def test_a_batch_knows_its_size() -> None:
    batch = make()
    assert (len(batch), batch.height, batch.width) == (3, 4, 6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": np.zeros((3, 4, 6, 3), np.float32)}, "uint8"),
        ({"frames": np.zeros((4, 6, 3), np.uint8)}, "shape"),
        ({"frames": np.zeros((3, 4, 6, 4), np.uint8)}, "shape"),
        ({"frames": np.zeros((0, 4, 6, 3), np.uint8), "timestamps": np.zeros(0)}, "at least one frame"),
        ({"frames": [[1]]}, "numpy array"),
        ({"timestamps": np.array([0.0, 0.1])}, r"\[3\]"),
        ({"timestamps": np.array([0.0, 0.1, 0.1])}, "0.1 follows 0.1 at frame 2"),
        ({"timestamps": np.array([0.0, np.nan, 0.2])}, "finite"),
        ({"timestamps": np.array([0, 1, 2])}, "float64"),
        ({"timestamps": [0.0, 0.1, 0.2]}, "numpy array"),
        ({"fps": Fraction(0)}, "fps"),
        ({"fps": 24.0}, "fps"),
    ],
)
def test_a_wrong_value_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)
