"""The files that a reconstruction leaves: all of them complete, or none."""

from __future__ import annotations

from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from foresight.media import ClipWriter, FrameBatch
from foresight.media.pending import PendingFile, commit_all
from foresight.runtime.errors import ReconstructError
from foresight.runtime.options import ReconstructOptions
from foresight.runtime.report import Report

__all__ = ["Outputs", "check_paths"]


def check_paths(options: ReconstructOptions) -> None:
    """Raise ReconstructError where an output would replace the clip or another output."""
    taken = {options.clip.resolve(): "the clip itself"}
    for path in (options.output, options.compare, options.report):
        if path is None:
            continue
        if path.resolve() in taken:
            raise ReconstructError(f"{path}: is {taken[path.resolve()]}; give every output a name of its own")
        taken[path.resolve()] = "another output of this command"


class Outputs:
    """The output video, the comparison and the report of one command; a context manager.

    All of them are opened at once, so that what cannot be written is refused before any work. They get their
    names together as the with-block is left; where that fails, or the block is left by an error, nothing of
    them stays and what they were to replace is as it was.

    Args:
        options: says which outputs there are.
        size: (height, width) of the reconstructed frames in pixels.
        fps: average frame rate of the clip.
        audio: whether the clip has sound to carry over.

    Raises:
        ClipError: an output exists and may not be replaced, or cannot be written.
    """

    def __init__(
        self, options: ReconstructOptions, *, size: tuple[int, int], fps: Fraction, audio: bool
    ) -> None:
        self._size = size
        self._finished: list[PendingFile] = []
        sound = options.clip if audio else None
        with ExitStack() as opened:

            def open_clip(path: Path, size: tuple[int, int]) -> ClipWriter:
                height, width = size
                writer = ClipWriter(
                    path, width=width, height=height, fps=fps, audio_from=sound, overwrite=options.overwrite
                )
                opened.callback(writer.abort)
                return writer

            self._output = open_clip(options.output, size)
            self._compare = None
            if options.compare is not None:
                self._compare = open_clip(options.compare, (size[0], 2 * size[1]))
            self._report = None
            if options.report is not None:
                self._report = PendingFile(options.report, overwrite=options.overwrite)
                opened.callback(self._report.discard)
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._opened:
            if error is None:
                commit_all(self._finished)

    @property
    def wants_source(self) -> bool:
        """Whether the clip's own frames are shown beside the reconstructed ones."""
        return self._compare is not None

    def write(self, batch: FrameBatch, source: FrameBatch | None = None) -> None:
        """Append reconstructed frames; in the comparison those of `source` stand on their left, scaled."""
        self._output.write(batch)
        if self._compare is not None and source is not None:
            import torch

            from foresight.runtime.framing import resize

            left = resize(torch.from_numpy(source.frames), self._size).numpy()
            pair = np.concatenate([left, batch.frames], axis=2)
            self._compare.write(FrameBatch(frames=pair, timestamps=batch.timestamps, fps=batch.fps))

    def close(self) -> tuple[str, ...]:
        """Finish the videos; returns what has to be said about their sound. Raises as `ClipWriter.finish`."""
        videos = (self._output,) if self._compare is None else (self._output, self._compare)
        self._finished += [video.finish() for video in videos]
        return (self._output.warning,) if self._output.warning else ()

    def write_report(self, report: Report) -> None:
        """Write the report where one was asked for. Raises OSError when the disk refuses."""
        if self._report is not None:
            self._report.temporary.write_text(report.to_json(), encoding="utf-8")
            self._finished.append(self._report)
