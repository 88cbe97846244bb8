"""Training of one adapter on one stack."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import torch
from torch import Tensor

from foresight.adapters import Adapter, adapter_config, build_adapter, load_adapter, save_adapter
from foresight.adapters.config import LATENT_ARCHITECTURES
from foresight.models.stack import Stack
from foresight.training.bridging import AdapterTask, ConditioningTask, LatentTask
from foresight.training.clips import ClipPool
from foresight.training.conditioning import ConditioningEncoder
from foresight.training.config import AdapterTrainingConfig, write_options
from foresight.training.device import choose_device
from foresight.training.examples import ExampleSource, KeptExamples, LiveExamples, Pool
from foresight.training.footage import FootagePool
from foresight.training.loop import Loop, LoopConfig

__all__ = ["AdapterTrainer"]


class AdapterTrainer:
    """Trains an adapter between a stack's frozen encoders and its frozen decoder.

    `examples` and `teacher` (the transformer's own conditioning encoder) replace what the configuration describes;
    the nano stack's training has both at hand.
    """

    def __init__(
        self,
        config: AdapterTrainingConfig,
        *,
        examples: ExampleSource | None = None,
        teacher: ConditioningEncoder | None = None,
    ) -> None:
        config.check()
        self.config = config
        self.deadline = time.monotonic() + 60 * config.minutes
        self.device = choose_device(config.device)
        # Master weights are float32; the loop's autocast chooses the arithmetic.
        self.stack = Stack.load(config.stack, device=self.device, dtype=torch.float32)
        torch.manual_seed(config.seed)
        self.adapter = self.build()
        self.task = self.assign(examples or self.draw_examples(), teacher)

    def build(self) -> Adapter:
        """An adapter of the configured architecture and size, shaped for the stack; fresh unless it starts from one."""
        stack, latent = self.stack, self.config.architecture in LATENT_ARCHITECTURES
        expected = adapter_config(
            self.config.architecture,
            self.config.size,
            vlm_dim=stack.vlm.tower.config.out_hidden_size,
            dino_dim=stack.dino.model.embed_dim,
            output_grid=stack.config.latent_size if latent else None,
        )
        if self.config.start_from is None:
            return build_adapter(expected).to(self.device)
        adapter = load_adapter(self.config.start_from, device=self.device)
        if adapter.config != expected:
            raise ValueError(
                f"{self.config.start_from}: is no {self.config.architecture} adapter of size {self.config.size} "
                f"for stack {self.config.stack}"
            )
        return adapter.train()

    def draw_examples(self) -> ExampleSource:
        """The configured clips with what the encoders see of them."""
        kind = KeptExamples if self.config.keep_features else LiveExamples
        return kind(self.stack, self.draw_pool())

    def draw_pool(self) -> Pool:
        """The configured clips, in memory on the device."""
        config, stack = self.config, self.stack.config
        if config.clips is None:
            return ClipPool(
                config.pool,
                device=self.device,
                seed=config.seed,
                size=stack.size,
                num_frames=stack.num_frames,
            )
        footage = FootagePool(
            config.clips,
            size=stack.size,
            num_frames=stack.num_frames,
            max_clips=config.pool,
            device=self.device,
        )
        for reason in footage.skipped:
            logging.getLogger(__name__).warning("left out: %s", reason)
        return footage

    def assign(self, examples: ExampleSource, teacher: ConditioningEncoder | None) -> AdapterTask:
        """The task for what this adapter answers with."""
        if self.adapter.config.output_grid is not None:
            return LatentTask(self.adapter, self.stack, examples, self.config.batch)
        return ConditioningTask(self.adapter, self.stack, examples, self.config.batch, teacher)

    def train(self) -> bool:
        """Train, write the checkpoint to `output` and return True; False where the minutes ran out first."""
        config = self.config
        write_options(config, config.run)
        loop = LoopConfig(steps=config.steps, muon_rate=config.muon_rate, adamw_rate=config.adamw_rate)
        loss: Callable[[], dict[str, Tensor]] = self.task
        if not Loop(self.task, loss, loop, config.run, adamw=AdapterTask.ADAMW).run(self.deadline):
            return False
        save_adapter(self.adapter, config.output, stack_fingerprint=self.stack.fingerprint)
        return True
