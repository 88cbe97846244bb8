"""How long and how fast each part is trained, as values in one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["STAGES", "StagePreset"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePreset:
    """Steps, clips a step and the two learning rates of one stage."""

    steps: int
    batch: int
    muon_rate: float
    adamw_rate: float


# In the order in which the stages depend on each other; the steps are those of the shipped weights, some in several
# runs, and their conditioning_10m then went on for 10,574 and for 11,444 at 0.7 of the rates.
STAGES: Mapping[str, StagePreset] = {
    "vae": StagePreset(steps=53_034, batch=16, muon_rate=1e-3, adamw_rate=5e-4),
    "decoder": StagePreset(steps=36_989, batch=16, muon_rate=5e-4, adamw_rate=2.5e-4),
    "dino": StagePreset(steps=3_600, batch=64, muon_rate=1.5e-3, adamw_rate=5e-4),
    "vlm": StagePreset(steps=6_700, batch=64, muon_rate=1.5e-3, adamw_rate=5e-4),
    "transformer": StagePreset(steps=16_821, batch=128, muon_rate=2e-3, adamw_rate=5e-4),
    "conditioning_encoder": StagePreset(steps=26_154, batch=128, muon_rate=2e-3, adamw_rate=5e-4),
    "steering": StagePreset(steps=7_876, batch=128, muon_rate=1e-3, adamw_rate=2.5e-4),
    "conditioning_10m": StagePreset(steps=9_275, batch=64, muon_rate=1.5e-3, adamw_rate=5e-4),
    "latent_10m": StagePreset(steps=6_889, batch=64, muon_rate=1.5e-3, adamw_rate=5e-4),
}
