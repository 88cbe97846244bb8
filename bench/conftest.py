"""Every benchmark file names the command, the machine, the versions and the commit that its figures belong to."""

from __future__ import annotations

from typing import Any

from bench.environment import describe_command, describe_environment


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:  # noqa: ARG001
    machine_info["foresight"] = describe_environment()


def pytest_benchmark_update_json(config: Any, benchmarks: Any, output_json: dict[str, Any]) -> None:  # noqa: ARG001
    output_json["command"] = describe_command()
