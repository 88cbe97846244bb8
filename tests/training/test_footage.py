"""A folder of videos becomes a pool of whole chunks."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from foresight.media import ClipWriter, FrameBatch
from foresight.training.footage import FootagePool, cover


def write_clip(path: Path, num_frames: int, colour: tuple[int, int, int]) -> None:
    frames = np.full((num_frames, 48, 64, 3), colour, np.uint8)
    times = np.arange(num_frames) / 24
    with ClipWriter(path, width=64, height=48, fps=Fraction(24)) as writer:
        writer.write(FrameBatch(frames=frames, timestamps=times, fps=Fraction(24)))


def pool(folder: Path, max_clips: int = 10) -> FootagePool:
    device = torch.device("cpu")
    return FootagePool(folder, size=(32, 64), num_frames=9, max_clips=max_clips, device=device)


def test_whole_chunks_are_kept_and_unreadable_files_are_named(tmp_path: Path) -> None:
    write_clip(tmp_path / "red.mp4", 20, (200, 0, 0))
    write_clip(tmp_path / "short.mp4", 5, (0, 0, 200))
    (tmp_path / "text.mp4").write_text("no clip")
    clips = pool(tmp_path)
    assert clips.frames.shape == (2, 9, 32, 64, 3)
    assert len(clips.skipped) == 1
    assert "text.mp4" in clips.skipped[0]

    assert clips.frames[..., 0].float().mean() > 170


def test_no_more_than_asked_for(tmp_path: Path) -> None:
    write_clip(tmp_path / "long.mp4", 40, (0, 200, 0))
    assert pool(tmp_path, max_clips=3).frames.shape[0] == 3


@pytest.mark.parametrize(("name", "message"), [("nothing", "not a folder"), ("", "no video of 9 frames")])
def test_a_folder_without_clips_is_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pool(tmp_path / name)


def test_covering_keeps_the_aspect_and_the_centre() -> None:
    frames = torch.zeros(1, 40, 40, 3, dtype=torch.uint8)
    frames[:, 18:22, :] = 255
    covered = cover(frames, (20, 40))
    assert covered.shape == (1, 20, 40, 3)
    assert covered[0, 9:11].float().mean() > 200
    assert covered[0, :5].float().mean() < 10
