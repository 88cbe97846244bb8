"""Opening a clip safely: every check that can be made before a frame is decoded, in the order of what it
costs.

What it refuses or bounds: other containers than mp4/mov and Matroska/WebM, references to other files and
hosts, codecs off the list, sizes and durations in the header over the limits.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import av
from av.container import InputContainer
from av.stream import Discard, Disposition
from av.video.stream import VideoStream

from foresight.media.boxes import inspect_structure
from foresight.media.errors import ClipError
from foresight.media.limits import ClipLimits
from foresight.media.source import Source

CODECS = frozenset({"h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mjpeg", "prores"})
"""Video codecs that are decoded; FFmpeg's own list is ten times as long and less well tested."""

_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm"
_PROBE_BYTES = 2 * 2**20
_FALLBACK_FPS = Fraction(25)
_MAX_FPS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenClip:
    """An opened clip: the demuxer, its video stream, and how many bytes the file lacks at its end."""

    container: InputContainer
    stream: VideoStream
    missing_bytes: int


def open_container(source: Source, limits: ClipLimits) -> OpenClip:
    """Open a source and choose its video stream; nothing is left open where it raises, but for the source
    itself.

    Raises:
        ClipError: no readable container, no index, no video, a codec off the list, or a header over the
            limits.
    """
    structure = inspect_structure(source.file, source.size)
    if not structure.has_index:
        raise ClipError(
            f"{source.name}: has no index (moov), its recording was cut short; give a finished mp4"
        )
    container = _open(source, limits)
    try:
        stream = _video_stream(container, source, limits)
        check_size(source.name, stream.codec_context.width, stream.codec_context.height, limits)
        _check_header(source.name, container, stream, limits)
        stream.codec_context.options = _pixel_options(limits)
        stream.codec_context.thread_type = "SLICE"
    except BaseException:
        container.close()
        raise
    return OpenClip(container=container, stream=stream, missing_bytes=structure.missing_bytes)


def check_size(name: str, width: int, height: int, limits: ClipLimits) -> None:
    """Raise ClipError where a frame of this size has more pixels than the limits allow."""
    if limits.max_pixels is not None and width * height > limits.max_pixels:
        allowed = f"the limit of {limits.max_pixels} pixels"
        raise ClipError(f"{name}: frames of {width}x{height} exceed {allowed}; scale them down")


def header_seconds(container: InputContainer, stream: VideoStream) -> float | None:
    """Return the duration that the header gives, in seconds, or None."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration and container.duration > 0 else None


def stream_fps(stream: VideoStream) -> Fraction:
    """Return a stream's average frame rate; 25 where the file does not say anything believable."""
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate is not None and 0 < rate <= _MAX_FPS:
            return Fraction(rate)
    return _FALLBACK_FPS


def _pixel_options(limits: ClipLimits) -> dict[str, str]:
    return {} if limits.max_pixels is None else {"max_pixels": str(limits.max_pixels)}


def _open(source: Source, limits: ClipLimits) -> InputContainer:
    options = {"protocol_whitelist": "none", "format_whitelist": _FORMATS, "probesize": str(_PROBE_BYTES)}
    try:
        container: InputContainer = av.open(source.file, "r", options=options | _pixel_options(limits))
    except (av.FFmpegError, UnicodeError) as error:
        reason = "is not a video that can be read"
        raise ClipError(f"{source.name}: {reason}; give an mp4, mov, webm or mkv file") from error
    return container


def _video_stream(container: InputContainer, source: Source, limits: ClipLimits) -> VideoStream:
    moving = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not moving:
        raise ClipError(f"{source.name}: holds no video; give a clip with a picture")
    if limits.max_video_streams is not None and len(moving) > limits.max_video_streams:
        raise ClipError(
            f"{source.name}: holds {len(moving)} video streams; at most {limits.max_video_streams} accepted"
        )
    chosen = moving[0]
    # PyAV gives no codec context where FFmpeg has no decoder, though its types promise one.
    context: object = chosen.codec_context
    codec = chosen.codec_context.codec.canonical_name if context is not None else "unknown"
    if codec not in CODECS:
        raise ClipError(
            f"{source.name}: its codec {codec} is not accepted; use one of {', '.join(sorted(CODECS))}"
        )
    for stream in container.streams:
        if stream.index != chosen.index:
            stream.discard = Discard.all
    return chosen


def _check_header(name: str, container: InputContainer, stream: VideoStream, limits: ClipLimits) -> None:
    seconds = header_seconds(container, stream)
    if limits.max_seconds is not None and seconds is not None and seconds > limits.max_seconds:
        raise ClipError(f"{name}: lasts {seconds:.1f} s; at most {limits.max_seconds:g} s are accepted")
    if limits.max_frames is not None and stream.frames > limits.max_frames:
        raise ClipError(f"{name}: has {stream.frames} frames; at most {limits.max_frames} are accepted")
