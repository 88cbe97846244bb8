"""The way up: the display matrix that cameras write instead of turning the pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

_MATRIX_BYTES = 36


@dataclass(frozen=True, slots=True, kw_only=True)
class Orientation:
    """How stored frames become upright: first transposed, then mirrored.

    Args:
        transposed: rows and columns are exchanged.
        mirrored_x: columns are reversed, after the exchange.
        mirrored_y: rows are reversed, after the exchange.
        rotation: degrees clockwise by which the stored frame is turned, one of 0, 90, 180, 270.
    """

    transposed: bool = False
    mirrored_x: bool = False
    mirrored_y: bool = False
    rotation: int = 0

    def upright(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a view of a stored frame [H, W, 3] that is upright, [W, H, 3] where it is transposed."""
        if self.transposed:
            frame = frame.swapaxes(0, 1)
        return frame[:: -1 if self.mirrored_y else 1, :: -1 if self.mirrored_x else 1]


def frame_orientation(frame: av.VideoFrame) -> Orientation:
    """Read a decoded frame's display matrix; turns that are no multiple of 90 degrees go to the nearest one.

    The matrix holds (a, b, u, c, d, v, x, y, w) in 16.16 fixed point and maps a stored pixel (p, q) to
    (a p + c q + x, b p + d q + y), y pointing down (FFmpeg's libavutil/display.h).
    """
    # PyAV's stub leaves the container's items untyped.
    items: Any = frame.side_data
    data = next((bytes(item) for item in items if item.type.name == "DISPLAYMATRIX"), b"")
    if len(data) != _MATRIX_BYTES:
        return Orientation()
    a, b, _, c, d, *_ = (int(value) for value in np.frombuffer(data, np.int32))
    rotation = round(math.degrees(math.atan2(b, a)) / 90) % 4 * 90
    if abs(b) > abs(a):
        return Orientation(transposed=True, mirrored_x=c < 0, mirrored_y=b < 0, rotation=rotation)
    return Orientation(mirrored_x=a < 0, mirrored_y=d < 0, rotation=rotation)
