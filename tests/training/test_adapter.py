"""An adapter trains on a stack and on a user's own clips, and its checkpoint belongs to that stack."""

import logging
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from foresight.adapters import AdapterError, load_adapter
from foresight.media import ClipWriter, FrameBatch
from foresight.training.adapter import AdapterTrainer
from foresight.training.config import AdapterTrainingConfig


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    frames = np.random.default_rng(0).integers(0, 255, (18, 64, 96, 3), np.uint8)
    batch = FrameBatch(frames=frames, timestamps=np.arange(18) / 24, fps=Fraction(24))
    with ClipWriter(folder / "noise.mp4", width=96, height=64, fps=Fraction(24)) as writer:
        writer.write(batch)
    (folder / "broken.mp4").write_bytes(b"nothing")
    return folder


@pytest.mark.parametrize(("architecture", "keep"), [("query", False), ("cross_attention", True)])
def test_training_on_own_clips_writes_a_checkpoint_for_this_stack_alone(
    clips: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, architecture: str, keep: bool
) -> None:
    config = AdapterTrainingConfig(
        output=tmp_path / "adapter",
        run=tmp_path / "run",
        architecture=architecture,
        size="5m",
        clips=clips,
        keep_features=keep,
        steps=1,
        batch=1,
        device="cpu",
    )
    with caplog.at_level(logging.WARNING):
        trainer = AdapterTrainer(config)
    assert "broken.mp4" in caplog.text
    before = [parameter.detach().clone() for parameter in trainer.adapter.parameters()]
    assert trainer.train()
    assert any(
        not torch.equal(old, new) for old, new in zip(before, trainer.adapter.parameters(), strict=True)
    )
    assert load_adapter(config.output, stack_fingerprint=trainer.stack.fingerprint).config.num_layers == 2
    with pytest.raises(AdapterError, match="another"):
        load_adapter(config.output, stack_fingerprint="another")
