"""Evaluation of the shipped stack: every path measured on every set, on clips that are the same everywhere."""

import json
from pathlib import Path

import pytest
import torch

from foresight.training.cli import main
from foresight.training.evaluate import held_out_sets


def test_held_out_clips_are_the_same_every_time_and_their_masks_are_known() -> None:
    first, again = (held_out_sets(2, (32, 64), 9) for _ in range(2))
    assert {*first} == {"textures", "shapes", "photographs"}
    for name, clips in first.items():
        assert torch.equal(clips.video, again[name].video)
    assert first["shapes"].masks is not None
    assert first["shapes"].masks.any((1, 2, 3, 4)).all()
    assert first["textures"].masks is None


@pytest.mark.slow
def test_the_shipped_stack_beats_its_controls(tmp_path: Path) -> None:
    out = tmp_path / "quality.json"
    assert main(["evaluate", "--out", str(out), "--clips", "2", "--device", "cpu"]) == 0
    result = json.loads(out.read_text())
    assert result["weights"].startswith("nano-")
    assert result["versions"]["torch"]
    for paths in result["sets"].values():
        for path in ("conditioning", "latent"):
            assert paths["vae"]["psnr_db"] > paths[path]["psnr_db"] > paths["mean_colour"]["psnr_db"] + 4
