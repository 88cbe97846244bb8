"""A compiled member of an engine as a backend: checks, padding, and the member's own function."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foresight.adapters import (
    AdapterConfig,
    Compiled,
    EngineBucket,
    EngineError,
    EngineFile,
    EngineMember,
    Grid,
    TensorRTPlan,
    engine_inputs,
    open_aoti,
    open_onnx,
)
from foresight.runtime.backend import BackendDescription, BackendName
from foresight.runtime.backend_inputs import check_inputs, find_bucket, pad_to_bucket

__all__ = ["CompiledBackend", "open_compiled"]

_MOST_KNOWN = 64


class CompiledBackend:
    """One or several members that each take a shape of their own, or one that takes all (the key None).

    `device` is the pipeline's; a member that runs elsewhere gets its inputs there and its output back.
    """

    def __init__(
        self,
        name: BackendName,
        config: AdapterConfig,
        functions: Mapping[EngineBucket | None, Compiled],
        *,
        member: str,
        device: torch.device,
        dtype: torch.dtype,
        example: EngineBucket,
    ) -> None:
        self.config, self.device, self.dtype = config, device, dtype
        self._functions = dict(functions)
        self._example = example
        # A stream's clips share grid and length: copying them to a GPU at every call would wait for it.
        self._known_numbers: dict[tuple[object, ...], tuple[Tensor, ...]] = {}
        self._description = BackendDescription(
            name=name,
            member=member,
            device=str(device),
            dtype=str(dtype).removeprefix("torch."),
            buckets=tuple(bucket for bucket in functions if bucket is not None),
        )

    @torch.inference_mode()
    def prepare(self) -> None:
        """Run every member once, on zeros."""
        for bucket in self._description.buckets or (self._example,):
            new: dict[str, Any] = {"device": self.device, "dtype": self.dtype}
            vlm = torch.zeros(bucket.batch, bucket.vlm_tokens, self.config.vlm_dim, **new)
            dino = torch.zeros(bucket.batch, bucket.dino_tokens, self.config.dino_dim, **new)
            self._run(engine_inputs(vlm, dino, (1, 1, 1), (1, 1, 1), None))

    def __call__(
        self,
        vlm_hidden_states: Tensor,
        dino_hidden_states: Tensor,
        *,
        vlm_grid: Grid | None = None,
        dino_grid: Grid | None = None,
        vlm_lengths: Tensor | None = None,
    ) -> Tensor:
        """Translate; raises ValueError for what the adapter refuses and for shapes that no member takes."""
        check_inputs(self.config, vlm_hidden_states, dino_hidden_states, vlm_grid, dino_grid, vlm_lengths)
        features = (each.to(self.dtype).contiguous() for each in (vlm_hidden_states, dino_hidden_states))
        numbers = self._numbers(vlm_hidden_states, dino_hidden_states, vlm_grid, dino_grid, vlm_lengths)
        output = self._run((*features, *numbers))
        return output.to(device=vlm_hidden_states.device, dtype=vlm_hidden_states.dtype)

    def _numbers(
        self,
        vlm_hidden_states: Tensor,
        dino_hidden_states: Tensor,
        vlm_grid: Grid | None,
        dino_grid: Grid | None,
        vlm_lengths: Tensor | None,
    ) -> tuple[Tensor, ...]:
        key = (vlm_grid, dino_grid, *vlm_hidden_states.shape[:2])
        if vlm_lengths is None and key in self._known_numbers:
            return self._known_numbers[key]
        inputs = engine_inputs(vlm_hidden_states, dino_hidden_states, vlm_grid, dino_grid, vlm_lengths)
        numbers = tuple(each.to(self.device) for each in inputs[2:])
        if vlm_lengths is None:
            if len(self._known_numbers) == _MOST_KNOWN:
                self._known_numbers.clear()
            self._known_numbers[key] = numbers
        return numbers

    def _run(self, inputs: tuple[Tensor, ...]) -> Tensor:
        if not self._functions:
            raise ValueError(f"backend {self._description.name}: is closed")
        if None in self._functions:
            return self._functions[None](inputs)
        bucket = find_bucket(self._description.buckets, inputs)
        return self._functions[bucket](pad_to_bucket(inputs, bucket))[: inputs[0].shape[0]]

    def close(self) -> None:
        """Drop the members' functions and what they hold."""
        self._functions.clear()

    def describe(self) -> BackendDescription:
        """What this backend is."""
        return self._description


def open_compiled(
    name: BackendName, engine: EngineFile, members: list[EngineMember], device: torch.device
) -> CompiledBackend:
    """Verify the members of one kind, then load them.

    Raises EngineDamagedError before anything is loaded if one is not what the manifest says, EngineError for
    what its loader refuses.
    """
    opener = {"onnx": _open_onnx, "aoti": _open_aoti, "tensorrt": _open_plans}[name]
    functions = opener(engine, members, device)
    return CompiledBackend(
        name,
        engine.manifest.adapter,
        functions,
        member=", ".join(member.name for member in members),
        device=device,
        dtype=getattr(torch, members[0].dtype),
        example=engine.manifest.buckets[0],
    )


Opened = dict[EngineBucket | None, Compiled]
Opener = Callable[[EngineFile, list[EngineMember], torch.device], Opened]


def _open_onnx(engine: EngineFile, members: list[EngineMember], _device: torch.device) -> Opened:
    content = [engine.read(member.name) for member in members]
    return {None: open_onnx(content[0])}


def _open_aoti(engine: EngineFile, members: list[EngineMember], device: torch.device) -> Opened:
    with tempfile.TemporaryDirectory(prefix="foresight-") as folder:
        paths = [engine.extract(member.name, Path(folder)) for member in members]
        return {
            member.target.bucket: open_aoti(path, device) for member, path in zip(members, paths, strict=True)
        }


def _open_plans(engine: EngineFile, members: list[EngineMember], device: torch.device) -> Opened:
    plans = [engine.read(member.name) for member in members]
    functions: Opened = {}
    for member, plan in zip(members, plans, strict=True):
        if member.target.bucket is None:
            raise EngineError(f"member {member.name!r}: a TensorRT plan must name its bucket")
        functions[member.target.bucket] = TensorRTPlan(plan, device)
    return functions
