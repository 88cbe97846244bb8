"""The command `foresight-train`: the nano stack, adapters, and their evaluation."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from foresight.training.config import AdapterTrainingConfig, EvaluationConfig, NanoConfig

__all__ = ["main"]

NAME = "foresight-train"

Command = (
    Annotated[NanoConfig, tyro.conf.subcommand("nano", prefix_name=False)]
    | Annotated[AdapterTrainingConfig, tyro.conf.subcommand("adapter", prefix_name=False)]
    | Annotated[EvaluationConfig, tyro.conf.subcommand("evaluate", prefix_name=False)]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, 2 for what the user can mend, 3 where the time ran out, 130 when interrupted."""
    try:
        command = tyro.cli(Command, args=arguments, prog=NAME)
        return run(command)
    except KeyboardInterrupt:
        print(f"{NAME}: interrupted; the same command continues from the last saved state", file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"{NAME}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def run(command: NanoConfig | AdapterTrainingConfig | EvaluationConfig) -> int:
    """Carry out one parsed command."""
    command.check()
    if isinstance(command, EvaluationConfig):
        return run_evaluation(command)
    if isinstance(command, NanoConfig):
        from foresight.training.nano import NanoTraining

        finished = NanoTraining(command).run()
    else:
        from foresight.training.adapter import AdapterTrainer

        finished = AdapterTrainer(command).train()
    if not finished:
        print(f"{NAME}: the minutes are over; the same command continues", file=sys.stderr)
    return 0 if finished else 3


def run_evaluation(config: EvaluationConfig) -> int:
    """Measure, write the JSON atomically, and print the bars."""
    if not config.out.parent.is_dir():
        raise ValueError(f"{config.out}: the folder {config.out.parent} does not exist")
    from foresight.evaluation.environment import describe_hardware, find_commit, library_versions
    from foresight.training.evaluate import evaluate

    result = evaluate(config)
    environment = {
        "hardware": describe_hardware(result["device"]),
        "versions": library_versions(),
        "commit": find_commit(),
    }
    write_json(config.out, {**result, **environment})
    for bar in result["bars"]:
        value = "not measured" if bar["value"] is None else f"{bar['value']:.3f}"
        verdict = {None: " ", True: "reached", False: "MISSED"}[bar["reached"]]
        print(f"{bar['name']}: {value} ({'>=' if bar['at_least'] else '<='} {bar['limit']}) {verdict}")
    return 0


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write under a temporary name, then rename."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(result, indent=2) + "\n")
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main())
