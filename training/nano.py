"""Training of the nano stack, from nothing or from a finished one: stages, each on disk before the next begins."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from foresight.models.architectures import build_dino, build_transformer, build_vae, build_vlm
from foresight.models.dino import DinoExtractor
from foresight.models.latents import LTXLatentExtractor, denormalize_latents
from foresight.models.presets import ARCHITECTURES, STACKS
from foresight.models.saving import save_stack
from foresight.models.stack import Stack
from foresight.models.vlm import QwenLatentExtractor
from foresight.training.adapter import AdapterTrainer
from foresight.training.autoencoder import AutoencoderTask, DecoderTask, initialise, measure_latents
from foresight.training.clips import ClipPool
from foresight.training.conditioning import ConditioningEncoder, VelocityTask, encoder_weights
from foresight.training.config import AdapterTrainingConfig, NanoConfig, write_options
from foresight.training.device import choose_device
from foresight.training.examples import ExampleSource, KeptExamples, LatentPool
from foresight.training.loop import Loop, LoopConfig
from foresight.training.presets import STAGES
from foresight.training.pretraining import MaskedPatchTask, SceneTask

__all__ = ["NanoTraining"]

CONFIG = STACKS["nano"]
ARCHITECTURE = ARCHITECTURES["nano"]
BUILDERS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "vae": build_vae,
    "dino": build_dino,
    "vlm": build_vlm,
    "transformer": build_transformer,
}
MODULES: Mapping[str, Callable[[Stack], nn.Module]] = {
    "vae": lambda stack: stack.decoder.vae,
    "dino": lambda stack: stack.dino.model,
    "vlm": lambda stack: stack.vlm.tower,
    "transformer": lambda stack: stack.decoder.transformer,
}


class NanoTraining:
    """The stages of the nano stack's training, by name; a finished stage is loaded, never trained twice."""

    def __init__(self, config: NanoConfig) -> None:
        config.check()
        self.config = config
        self.device = choose_device(config.device)
        self.deadline = time.monotonic() + 60 * config.minutes
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True

    def run(self) -> bool:
        """Train the chosen stages in the order of the table; return whether all of them are finished."""
        write_options(self.config, self.config.run)
        for name in STAGES:
            if name in self.config.stages and not self.finished(name):
                if name in (*MODULES, "decoder", "steering") and (self.stack_folder / "stack.json").exists():
                    raise ValueError(
                        f"{self.stack_folder} is put together already: stage {name!r} belongs in another run"
                    )
                torch.manual_seed(self.config.seed)
                if not getattr(self, f"train_{name}")():
                    return False
        return True

    @cached_property
    def pool(self) -> ClipPool:
        """The training clips; seeds from 1,000,000 up are never used for training, evaluation draws there."""
        return ClipPool(self.config.pool, device=self.device, seed=self.config.seed)

    def weights(self, stage: str) -> Path:
        """Where a finished stage's weights lie."""
        return self.config.run / stage / "weights.safetensors"

    def finished(self, stage: str) -> bool:
        """Whether a stage's result is on disk."""
        return (
            self.weights(stage).exists() or (self.stack_folder / "adapters" / stage / "config.json").exists()
        )

    def train_vae(self) -> bool:
        """The video autoencoder, then the statistics of its latents."""
        vae = self.fresh("vae").to(memory_format=torch.channels_last_3d)
        if self.start is None and not (self.config.run / "vae" / "state.pt").exists():
            initialise(vae, self.pool.sample(64)[0])
        task = AutoencoderTask(vae, self.pool, self.batch("vae"))
        if self.device.type == "cuda":
            task.fuse()
        if not self.fit("vae", task):
            return False
        measure_latents(vae, self.pool)
        return self.keep("vae", vae)

    def train_decoder(self) -> bool:
        """The autoencoder's decoder for longer; the latents stay as they are, and with them all that knows them."""
        vae = self.load("vae").to(memory_format=torch.channels_last_3d)
        vae.encoder.requires_grad_(False)
        task = DecoderTask(vae, self.pool, self.batch("decoder"))
        if self.device.type == "cuda":
            task.fuse()
        return self.fit("decoder", task) and self.keep("decoder", vae)

    def train_dino(self) -> bool:
        """The image encoder, on masked patches."""
        dino = self.untrained_dino()
        task = MaskedPatchTask(dino, self.pool, self.batch("dino")).to(self.device)
        return self.fit("dino", task) and self.keep("dino", dino.model)

    def train_vlm(self) -> bool:
        """The clip encoder, on its own pixels and the scene's attributes."""
        vlm = self.untrained_vlm()
        width = int(ARCHITECTURE["vlm"]["out_hidden_size"])
        task = SceneTask(vlm, width, self.pool, self.batch("vlm")).to(self.device)
        return self.fit("vlm", task) and self.keep("vlm", vlm.tower)

    def train_transformer(self) -> bool:
        """The transformer, together with a narrow conditioning encoder that nobody needs afterwards."""
        transformer = self.fresh("transformer")
        encoder = self.untrained_conditioning(width=256, num_encoders=1, num_readers=2, noise=0.1)
        task = VelocityTask(
            transformer, encoder, self.latent_pool.draw, self.batch("transformer"), CONFIG.fps
        )
        return self.fit("transformer", task) and self.keep("transformer", transformer)

    def train_conditioning_encoder(self) -> bool:
        """The best that the finished transformer can be told about a clip, for its adapter to imitate."""
        encoder = self.untrained_conditioning()
        task = self.steering_task("conditioning_encoder", freeze(self.load("transformer")), encoder)
        return self.fit("conditioning_encoder", task) and self.keep("conditioning_encoder", encoder)

    def train_steering(self) -> bool:
        """The transformer again, together with that encoder, which tells it more than the narrow one did."""
        transformer, encoder = self.load("transformer"), self.conditioning_encoder()
        if encoder is None:
            raise ValueError(f"{self.weights('conditioning_encoder')} is missing: train that stage first")
        done = self.fit("steering", self.steering_task("steering", transformer, encoder))
        # The weights last, by which the stage is known to be finished.
        return done and self.keep("steering", encoder, "encoder") and self.keep("steering", transformer)

    def steering_task(self, stage: str, transformer: Any, encoder: ConditioningEncoder) -> VelocityTask:
        """Velocities and decoded estimates of the clips' latents."""
        return VelocityTask(
            transformer,
            encoder,
            self.latent_pool.draw,
            self.batch(stage),
            CONFIG.fps,
            lambda latents: self.vae.decoder(denormalize_latents(latents, self.vae)),
        )

    def train_conditioning_10m(self) -> bool:
        """The adapter whose tokens steer the transformer, with the conditioning encoder to imitate.

        One that goes on from a finished stack may do without.
        """
        teacher = self.conditioning_encoder()
        if self.start is None and teacher is None:
            path = self.weights("conditioning_encoder")
            raise ValueError(f"{path} is missing: train stage 'conditioning_encoder' first")
        return self.train_adapter("conditioning_10m", "query", None if teacher is None else freeze(teacher))

    def train_latent_10m(self) -> bool:
        """The adapter that answers with latents."""
        return self.train_adapter("latent_10m", "cross_attention")

    def train_adapter(
        self, stage: str, architecture: str, teacher: ConditioningEncoder | None = None
    ) -> bool:
        """One adapter, on the stack as it is shipped."""
        preset = STAGES[stage]
        config = AdapterTrainingConfig(
            output=self.stack_folder / "adapters" / stage,
            run=self.config.run / stage,
            stack=str(self.assemble()),
            architecture=architecture,
            start_from=None if self.start is None else self.start.folder / "adapters" / stage,
            steps=self.steps(stage),
            batch=self.batch(stage),
            muon_rate=self.config.rate * preset.muon_rate,
            adamw_rate=self.config.rate * preset.adamw_rate,
            device=self.config.device,
            seed=self.config.seed,
            minutes=(self.deadline - time.monotonic()) / 60,
        )
        return AdapterTrainer(config, examples=self.examples, teacher=teacher).train()

    @property
    def stack_folder(self) -> Path:
        """Where the finished stack is put together."""
        return self.config.run / "stack"

    def assemble(self) -> Path:
        """Write the stack folder from the finished stages, unless it is there, and return it."""
        if not (self.stack_folder / "stack.json").exists():
            save_stack(
                self.stack_folder,
                CONFIG,
                vlm=self.load("vlm"),
                dino=self.load("dino"),
                dino_arch=ARCHITECTURE["dino"],
                transformer=self.best("transformer", "steering"),
                vae=self.vae,
            )
        return self.stack_folder

    @cached_property
    def examples(self) -> ExampleSource:
        """The training clips with what the finished stack's encoders see of them."""
        stack = Stack.load(str(self.assemble()), device=self.device, dtype=torch.float32)
        return KeptExamples(stack, self.pool)

    @cached_property
    def vae(self) -> Any:
        """The finished autoencoder, with its decoder at its best."""
        return self.best("vae", "decoder")

    @cached_property
    def start(self) -> Stack | None:
        """The finished stack that the stages start from."""
        return None if self.config.start_from is None else Stack.load(self.config.start_from)

    def fresh(self, stage: str) -> Any:
        """A stage's module as its training begins: untrained, or the starting stack's."""
        module = BUILDERS[stage](ARCHITECTURE[stage]).to(self.device)
        if self.start is not None:
            module.load_state_dict(MODULES[stage](self.start).state_dict())
        return module

    def untrained_dino(self) -> DinoExtractor:
        """The image encoder as its training begins."""
        return DinoExtractor(self.fresh("dino"), CONFIG.dino_size, CONFIG.dino_frames).to(self.device)

    def untrained_vlm(self) -> QwenLatentExtractor:
        """The clip encoder as its training begins."""
        return QwenLatentExtractor(self.fresh("vlm"), CONFIG.vlm_size, CONFIG.vlm_frames).to(self.device)

    def untrained_conditioning(self, **sizes: Any) -> ConditioningEncoder:
        """A fresh conditioning encoder."""
        return ConditioningEncoder(math.prod(CONFIG.latent_size), **sizes).to(self.device)

    def conditioning_encoder(self) -> ConditioningEncoder | None:
        """The best conditioning encoder of this run so far."""
        path = encoder_weights(self.config.run)
        if path is None:
            return None
        encoder = self.untrained_conditioning()
        load_model(encoder, str(path))
        return encoder

    @cached_property
    def latent_pool(self) -> LatentPool:
        """The latents of the training clips."""
        return LatentPool(LTXLatentExtractor(self.vae), self.pool)

    def batch(self, stage: str) -> int:
        """A stage's clips a step."""
        return STAGES[stage].batch if self.config.batch is None else self.config.batch

    def steps(self, stage: str) -> int:
        """A stage's steps at the configured length."""
        return max(1, round(STAGES[stage].steps * self.config.length))

    def fit(self, stage: str, task: nn.Module) -> bool:
        """Run the loop with the stage's preset; False where the time ran out."""
        preset = STAGES[stage]
        loop = LoopConfig(
            steps=self.steps(stage),
            muon_rate=self.config.rate * preset.muon_rate,
            adamw_rate=self.config.rate * preset.adamw_rate,
        )
        adamw: tuple[str, ...] = task.ADAMW  # type: ignore[assignment]
        loss: Callable[[], dict[str, Tensor]] = task
        return Loop(task, loss, loop, self.config.run / stage, adamw=adamw).run(self.deadline)

    def best(self, stage: str, later: str) -> Any:
        """A finished stage's module for use, as a later stage has left it where that one is finished too."""
        module = self.load(stage)
        if self.weights(later).exists():
            load_model(module, str(self.weights(later)))
        return freeze(module)

    def keep(self, stage: str, module: nn.Module, name: str = "weights") -> bool:
        """Write a finished module's weights under a temporary name, then rename; always True."""
        path = self.weights(stage).with_stem(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_model(module, str(partial))
        partial.replace(path)
        return True

    def load(self, stage: str) -> Any:
        """A finished stage's module, or the starting stack's; raises ValueError where there is neither."""
        path = self.weights(stage)
        if not path.exists() and self.start is None:
            raise ValueError(f"{path} is missing: train stage {stage!r} first")
        module = self.fresh(stage)
        if path.exists():
            load_model(module, str(path))
        return module


def freeze(module: Any) -> Any:
    """Put a module into evaluation mode, without gradients."""
    return module.eval().requires_grad_(False)
