"""The decoding loop: packets to frames, past damaged ones, within the limits on frames, pixels and time."""

from __future__ import annotations

import time
from collections.abc import Iterator

import av
from av.packet import Packet
from av.video.stream import VideoStream

from foresight.media.container import OpenClip, check_size
from foresight.media.errors import ClipError
from foresight.media.limits import ClipLimits


class FrameDecoder:
    """Decodes the video stream of an opened clip in order of display.

    Damaged packets are skipped and counted in `damaged`, so that a clip which was cut gives its frames up to
    the cut.
    """

    def __init__(self, clip: OpenClip, limits: ClipLimits, name: str) -> None:
        self.damaged = 0
        self.decoded = 0
        self._clip = clip
        self._limits = limits
        self._name = name
        self._seconds = 0.0

    def frames(self) -> Iterator[av.VideoFrame]:
        """Yield decoded frames.

        Raises:
            ClipError: a frame or the time spent here is over the limits.
        """
        packets: Iterator[Packet[VideoStream]] = self._clip.container.demux(self._clip.stream)
        at_end = False
        while not at_end:
            started = time.perf_counter()
            packet = self._next_packet(packets)
            at_end = packet is None or packet.size == 0
            frames = self._decode(packet)
            self._charge(time.perf_counter() - started)
            for frame in frames:
                self._check(frame)
                yield frame

    def _next_packet(self, packets: Iterator[Packet[VideoStream]]) -> Packet[VideoStream] | None:
        try:
            return next(packets, None)
        except av.FFmpegError:
            self.damaged += 1
            return None

    def _decode(self, packet: Packet[VideoStream] | None) -> list[av.VideoFrame]:
        # Half a packet decodes to half a picture: the rest would be grey or repeat the frame before.
        if packet is not None and packet.is_corrupt:
            self.damaged += 1
            return []
        try:
            frames: list[av.VideoFrame] = self._clip.stream.decode(packet)
        except av.FFmpegError as error:
            if not isinstance(error, EOFError):
                self.damaged += 1
            return []
        return frames

    def _charge(self, seconds: float) -> None:
        self._seconds += seconds
        allowed = self._limits.max_decode_seconds
        if allowed is not None and self._seconds > allowed:
            raise ClipError(f"{self._name}: takes more than {allowed:g} s to decode; give a smaller clip")

    def _check(self, frame: av.VideoFrame) -> None:
        check_size(self._name, frame.width, frame.height, self._limits)
        self.decoded += 1
        allowed = self._limits.max_frames
        if allowed is not None and self.decoded > allowed:
            raise ClipError(f"{self._name}: has more than the {allowed} frames that are accepted; shorten it")
