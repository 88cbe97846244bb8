from __future__ import annotations

import pytest

from foresight.media import LOCAL, UNTRUSTED, ClipLimits


def test_presets_bound_what_they_should() -> None:
    assert UNTRUSTED.max_bytes == 64 * 2**20
    assert UNTRUSTED.max_pixels == 1920 * 1088
    assert UNTRUSTED.max_frames == 257
    assert ClipLimits(max_pixels=4096 * 2304) == LOCAL


@pytest.mark.parametrize(
    "name", ["max_bytes", "max_pixels", "max_frames", "max_seconds", "max_decode_seconds"]
)
def test_a_bound_of_zero_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        ClipLimits(**{name: 0})
