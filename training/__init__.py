"""Data, losses, the loop, and the training of adapters and of the nano stack."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foresight.training.config import AdapterTrainingConfig, EvaluationConfig, NanoConfig

if TYPE_CHECKING:
    from foresight.training.adapter import AdapterTrainer

__all__ = ["AdapterTrainer", "AdapterTrainingConfig", "EvaluationConfig", "NanoConfig"]


def __getattr__(name: str) -> Any:
    # The trainer brings torch and the models with it, which `foresight-train --help` need not wait for.
    if name == "AdapterTrainer":
        from foresight.training.adapter import AdapterTrainer

        return AdapterTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
