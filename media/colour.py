"""Between the YUV of a stream and full-range RGB, by the stream's own matrix and range.

It does not know transfer curves: HDR clips (PQ, HLG) come out with the right matrix but are not tone-mapped.
"""

from __future__ import annotations

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray

# AVColorSpace (ITU-T H.273, matrix coefficients) to libswscale's matrices. 10 is BT.2020 constant luminance,
# for which libswscale has no matrix of its own; the other BT.2020 one is the closest.
_MATRICES = {
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
    10: Colorspace.BT2020,
}
_HD_HEIGHT = 720

# Chroma is repeated, not interpolated: that inverts the averaging by which FFmpeg's tools and the writer here
# made it. Without the other two flags libswscale takes a quick path for 4:2:0, off by up to three levels.
_TO_RGB = Interpolation.POINT | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
_SCALED_TO_RGB = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
_TO_YUV = Interpolation.BICUBIC | Interpolation.ACCURATE_RND


def frame_matrix(frame: av.VideoFrame) -> Colorspace:
    """Return a frame's matrix; unspecified means BT.709 from 720 rows on, else BT.601, as players do."""
    known = _MATRICES.get(int(frame.colorspace))
    if known is not None:
        return known
    return Colorspace.ITU709 if frame.height >= _HD_HEIGHT else Colorspace.ITU601


def frame_range(frame: av.VideoFrame) -> ColorRange:
    """Return a frame's range; unspecified means limited, except for the full-range yuvj formats."""
    if frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj"):
        return ColorRange.JPEG
    return ColorRange.MPEG


class RgbConverter:
    """Turns decoded frames into RGB of one size; holds libswscale's state, so one is kept for a clip."""

    def __init__(self, width: int, height: int) -> None:
        self._width = width
        self._height = height
        self._reformatter = VideoReformatter()

    def convert(self, frame: av.VideoFrame) -> NDArray[np.uint8]:
        """Return a decoded frame of any size and pixel format as uint8 RGB [height, width, 3]."""
        matrix = frame_matrix(frame)
        same_size = (frame.width, frame.height) == (self._width, self._height)
        rgb = self._reformatter.reformat(
            _unsited(frame) if same_size else frame,
            width=self._width,
            height=self._height,
            format="rgb24",
            interpolation=_TO_RGB if same_size else _SCALED_TO_RGB,
            src_colorspace=matrix,
            dst_colorspace=matrix,
            src_color_range=None if frame.format.is_rgb else frame_range(frame),
            dst_color_range=ColorRange.JPEG,
            threads=1,
        )
        plane = rgb.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(self._height, plane.line_size)
        pixels: NDArray[np.uint8] = rows[:, : self._width * 3].reshape(self._height, self._width, 3)
        return pixels


def _unsited(frame: av.VideoFrame) -> av.VideoFrame:
    """Copy a frame without its chroma location.

    Most files say "left" because that is their codec's default and not because their chroma was made so;
    libswscale would shift it by half a pixel.
    """
    if frame.format.chroma_width(2) == 2 and frame.format.chroma_height(2) == 2:
        return frame
    plain = av.VideoFrame(frame.width, frame.height, frame.format.name)
    for target, source in zip(plain.planes, frame.planes, strict=True):
        rows = np.frombuffer(memoryview(source), np.uint8).reshape(-1, source.line_size)
        filled = np.frombuffer(memoryview(target), np.uint8).reshape(-1, target.line_size)
        stride = min(source.line_size, target.line_size)
        filled[:, :stride] = rows[: len(filled), :stride]
    return plain


class YuvConverter:
    """Turns RGB frames into limited-range BT.709 4:2:0 with centred chroma, which browsers show right."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def convert(self, frame: NDArray[np.uint8]) -> av.VideoFrame:
        """Return uint8 RGB [H, W, 3], H and W even, as a tagged yuv420p frame."""
        rgb = av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(frame), "rgb24")
        yuv = self._reformatter.reformat(
            rgb,
            format="yuv420p",
            interpolation=_TO_YUV,
            src_colorspace=Colorspace.ITU709,
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            threads=1,
        )
        yuv.color_primaries = 1
        yuv.color_trc = 1
        return yuv
