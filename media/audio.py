"""The sound of a source clip, carried into another file beside its new picture."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Discard

from foresight.media.container import open_container
from foresight.media.limits import LOCAL, ClipLimits
from foresight.media.source import open_source

COPIED_CODECS = frozenset({"aac", "mp3", "opus"})
"""Audio codecs that browsers play from an mp4; their packets are copied as they are."""

TRANSCODED_CODECS = frozenset({"vorbis", "flac", "alac", "ac3", "eac3"})
"""Audio codecs that are decoded and coded again as AAC; PCM of every kind is, too."""

_PREROLL = Fraction(1, 10)
_AAC_RATE = 48_000
_AAC_BITS_PER_CHANNEL = 96_000


class AudioTrack:
    """The first sound track of a source, added to an output whose header is not written yet.

    Sound before the video's first frame is left out but for a tenth of a second, which decoders need to start
    up and an edit list hides; sound behind its last frame is left out, to within a packet.

    Args:
        source: the clip whose sound is taken.
        output: the file that it goes to.
        limits: how much of the source is accepted.

    Raises:
        ClipError: the source cannot be opened as a clip.
    """

    def __init__(self, source: Path, output: OutputContainer, limits: ClipLimits = LOCAL) -> None:
        self.warning: str | None = None
        self._output = output
        self._source = open_source(source, limits)
        try:
            self._clip = open_container(self._source, limits)
        except BaseException:
            self._source.file.close()
            raise
        self._stream = self._choose(self._clip.container)
        self._track = None if self._stream is None else self._add_track(self._stream)
        self._origin = Fraction(0)
        self._packets: Iterator[Packet[AudioStream]] = iter(())
        self._pending: Packet[AudioStream] | None = None

    def start(self, origin: float) -> None:
        """Take up the sound `origin` seconds behind the source's first frame."""
        if self._stream is None:
            return
        video = self._clip.stream
        first_frame = (video.start_time or 0) * (video.time_base or Fraction(0))
        self._origin = first_frame + Fraction(origin).limit_denominator(90_000)
        self._packets = self._clip.container.demux(self._stream)
        self._pending = self._next_packet()

    def mux_until(self, seconds: float) -> None:
        """Write the sound that begins before `seconds` on the output's clock."""
        while self._pending is not None and self._time(self._pending) < seconds:
            self._mux(self._pending)
            self._pending = self._next_packet()

    def finish(self, seconds: float) -> None:
        """Write what begins before `seconds`, the end of the picture, and what the encoder still holds."""
        self.mux_until(seconds)
        if self._track is not None and self._transcodes():
            self._output.mux(self._track.encode(None))

    def close(self) -> None:
        """Close the source."""
        self._clip.container.close()
        self._source.file.close()

    def _choose(self, container: InputContainer) -> AudioStream | None:
        if not container.streams.audio:
            return None
        stream = container.streams.audio[0]
        # PyAV gives no codec context where FFmpeg has no decoder, though its types promise one.
        context: object = stream.codec_context
        codec = stream.codec_context.codec.canonical_name if context is not None else "unknown"
        if codec in COPIED_CODECS | TRANSCODED_CODECS or codec.startswith("pcm_"):
            self._clip.stream.discard, stream.discard = Discard.all, Discard.default
            return stream
        self.warning = (
            f"{self._source.name}: its sound is {codec}, which cannot be carried over; the output is silent"
        )
        return None

    def _transcodes(self) -> bool:
        return (
            self._stream is not None and self._stream.codec_context.codec.canonical_name not in COPIED_CODECS
        )

    def _add_track(self, stream: AudioStream) -> AudioStream:
        if not self._transcodes():
            return self._output.add_stream_from_template(stream)
        track = self._output.add_stream("aac", rate=_AAC_RATE)
        channels = min(2, stream.codec_context.layout.nb_channels)
        track.codec_context.layout = "mono" if channels == 1 else "stereo"
        track.codec_context.bit_rate = channels * _AAC_BITS_PER_CHANNEL
        return track

    def _next_packet(self) -> Packet[AudioStream] | None:
        try:
            for packet in self._packets:
                usable = packet.size and packet.pts is not None and not packet.is_corrupt
                if usable and self._time(packet) >= -_PREROLL:
                    return packet
        except av.FFmpegError:
            self.warning = f"{self._source.name}: its sound is damaged and stops early"
        return None

    def _time(self, packet: Packet[AudioStream]) -> Fraction:
        return (packet.pts or 0) * packet.time_base - self._origin

    def _mux(self, packet: Packet[AudioStream]) -> None:
        if self._track is None:
            return
        shift = round(self._origin / packet.time_base)
        if self._transcodes():
            self._transcode(packet, self._track)
            return
        packet.pts = None if packet.pts is None else packet.pts - shift
        packet.dts = None if packet.dts is None else packet.dts - shift
        packet.stream = self._track
        self._output.mux(packet)

    def _transcode(self, packet: Packet[AudioStream], track: AudioStream) -> None:
        try:
            frames = packet.decode()
        except av.FFmpegError:
            self.warning = f"{self._source.name}: its sound is damaged in places"
            return
        for frame in frames:
            if frame.pts is not None and frame.time_base is not None:
                frame.pts -= round(self._origin / frame.time_base)
                if frame.pts >= 0:
                    self._output.mux(track.encode(frame))
