"""The one training loop: optimisers, schedule, averaging, log and checkpoints; it does not know what it trains."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from foresight.training.muon import Muon, split_parameters

__all__ = ["Loop", "LoopConfig"]

WARM_UP_ITERATIONS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopConfig:
    """How long and how fast to train: rates per step, `checkpoint_every` in seconds of wall time."""

    steps: int
    muon_rate: float
    adamw_rate: float
    warm_up: int = 100
    clip: float = 1.0
    average: float = 0.998
    log_every: int = 100
    checkpoint_every: float = 120.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps {self.steps}: must be at least 1")
        if not 0 <= self.average < 1:
            raise ValueError(f"average {self.average}: must be in [0, 1)")


class Loop:
    """Train `module` on `loss`, a function that draws its own batch and returns named scalars, `"loss"` among them.

    On CUDA the whole step (batch, forward, backward, clipping, both optimisers, average) is one captured graph.
    `folder` receives log.jsonl and state.pt; a loop made on the same folder continues where that one stopped.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[[], dict[str, Tensor]],
        config: LoopConfig,
        folder: Path,
        *,
        adamw: tuple[str, ...] = (),
    ) -> None:
        self.module = module
        self.loss = loss
        self.config = config
        self.folder = folder
        self.step = 0
        self.parameters: list[Tensor] = [
            parameter for parameter in module.parameters() if parameter.requires_grad
        ]
        self.device = self.parameters[0].device
        self.averages = [parameter.detach().clone() for parameter in self.parameters]
        self.rates = {name: torch.zeros((), device=self.device) for name in ("muon", "adamw")}
        matrices, rest = split_parameters(module, adamw)
        self.optimizers: list[torch.optim.Optimizer] = (
            [Muon(matrices, self.rates["muon"])] if matrices else []
        )
        if rest:
            fused = {"fused": True, "capturable": True} if self.device.type == "cuda" else {}
            rate = self.rates["adamw"] if fused else 0.0
            self.optimizers.append(
                torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.99), weight_decay=0.0, **fused)
            )
        self.sums: dict[str, Tensor] = {}
        folder.mkdir(parents=True, exist_ok=True)
        if self.state_path.exists():
            self.restore()

    @property
    def state_path(self) -> Path:
        """Where the resumable state lies."""
        return self.folder / "state.pt"

    def run(self, deadline: float = math.inf) -> bool:
        """Train to the last step, give the module its averaged weights and return True.

        Where `time.monotonic()` passes `deadline` first, save and return False; the next run continues from there.
        """
        replay = (
            self.capture() if self.device.type == "cuda" and self.step < self.config.steps else self.iterate
        )
        saved = logged = time.monotonic()
        with tqdm(total=self.config.steps, initial=self.step, desc=self.folder.name, unit="step") as bar:
            while self.step < self.config.steps:
                self.set_rates()
                replay()
                self.step += 1
                bar.update()
                if self.step % self.config.log_every == 0 or self.step == self.config.steps:
                    now = time.monotonic()
                    self.log(now - logged, bar)
                    logged = now
                    late = now > deadline and self.step < self.config.steps
                    if late or now - saved > self.config.checkpoint_every or self.step == self.config.steps:
                        self.save()
                        saved = now
                    if late:
                        return False
        self.use_average()
        return True

    def set_rates(self) -> None:
        """Linear warm-up, then a cosine to zero."""
        progress = self.step / self.config.steps
        scale = 0.5 * (1 + math.cos(math.pi * progress)) * min(1.0, (self.step + 1) / self.config.warm_up)
        self.rates["muon"].fill_(self.config.muon_rate * scale)
        self.rates["adamw"].fill_(self.config.adamw_rate * scale)
        if self.device.type != "cuda" and isinstance(self.optimizers[-1], torch.optim.AdamW):
            self.optimizers[-1].param_groups[0]["lr"] = self.config.adamw_rate * scale

    def iterate(self) -> None:
        """One step: the part that a CUDA graph captures."""
        mixed = self.device.type == "cuda"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=mixed, cache_enabled=False):
            scalars = self.loss()
        torch.autograd.backward(scalars["loss"])
        torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip, foreach=True)
        for optimizer in self.optimizers:
            optimizer.step()
        for parameter in self.parameters:
            parameter.grad = None
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, self.parameters, 1 - self.config.average)
            for name, value in scalars.items():
                self.sums.setdefault(name, torch.zeros((), device=self.device)).add_(value.detach().float())

    def capture(self) -> Callable[[], None]:
        """Warm up at rate zero on a side stream, then record one step."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_ITERATIONS):
                self.iterate()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.iterate()
        for total in self.sums.values():
            total.zero_()
        return graph.replay

    def log(self, seconds: float, bar: tqdm[Any]) -> None:
        """Append the means since the last line to log.jsonl."""
        count = (self.step - 1) % self.config.log_every + 1
        means = {name: float(total) / count for name, total in self.sums.items()}
        for total in self.sums.values():
            total.zero_()
        if not math.isfinite(means["loss"]):
            raise FloatingPointError(f"{self.folder.name}: the loss is {means['loss']} at step {self.step}")
        bar.set_postfix(loss=f"{means['loss']:.4f}", refresh=False)
        line = {"step": self.step, "seconds": round(seconds, 3), "rate": float(self.rates["muon"]), **means}
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")

    def save(self) -> None:
        """Write state.pt under a temporary name, then rename it."""
        state = {
            "step": self.step,
            "parameters": [parameter.detach() for parameter in self.parameters],
            "averages": self.averages,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "random": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            state["random_cuda"] = torch.cuda.get_rng_state(self.device)
        partial = self.state_path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.state_path)

    def restore(self) -> None:
        """Continue from state.pt; raises ValueError when it belongs to another module."""
        state = torch.load(self.state_path, map_location=self.device, weights_only=True)
        shapes = [value.shape for value in state["parameters"]]
        if shapes != [parameter.shape for parameter in self.parameters]:
            raise ValueError(
                f"{self.state_path}: the state of another module; remove the folder to start afresh"
            )
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, state["parameters"])
            torch._foreach_copy_(self.averages, state["averages"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for group in self.optimizers[-1].param_groups:
            if isinstance(self.optimizers[-1], torch.optim.AdamW) and self.device.type == "cuda":
                group["lr"] = self.rates["adamw"]
        # Otherwise a continued run would draw the batches of its first piece again.
        torch.set_rng_state(state["random"].cpu())
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"].cpu(), self.device)
        self.step = int(state["step"])

    @torch.no_grad()
    def use_average(self) -> None:
        """Put the averaged weights into the module."""
        torch._foreach_copy_(self.parameters, self.averages)
