"""What one adapter is: its architecture and sizes, as values that check themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from foresight.adapters.errors import AdapterError

__all__ = ["ARCHITECTURES", "HEAD_DIMS", "LATENT_ARCHITECTURES", "AdapterConfig", "Grid"]

Grid = tuple[int, int, int]

ARCHITECTURES = ("query", "cross_attention", "linear", "mlp", "bottleneck", "lora", "perceiver")
LATENT_ARCHITECTURES = ("cross_attention", "linear", "mlp")
HEAD_DIMS = (32, 64, 128)

# Sizes that an architecture has no use for must be 0: no configuration promises what is not there.
_UNUSED: Mapping[str, tuple[str, ...]] = {
    "query": (),
    "cross_attention": (),
    "linear": ("hidden_dim", "num_layers", "num_heads", "ff_dim"),
    "mlp": ("num_heads",),
    "bottleneck": ("num_layers", "num_heads"),
    "lora": ("num_layers", "num_heads"),
    "perceiver": (),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """Sizes of one adapter; a grid is `(time, rows, columns)` in tokens.

    `output_grid` is the latent grid of the architectures that write latents (cross_attention, linear, mlp)
    and None for those that write conditioning tokens. `max_grid` and `dino_max_grid` bound the learned
    positions of the VLM's and DINO's tokens. Sizes that an architecture does not use are 0. Raises
    AdapterError (a ValueError) that names the offending value.
    """

    architecture: str
    vlm_dim: int
    dino_dim: int
    hidden_dim: int
    num_layers: int
    num_heads: int
    ff_dim: int
    num_queries: int
    output_dim: int
    output_grid: Grid | None = None
    max_grid: Grid = (32, 64, 64)
    dino_max_grid: Grid = (16, 32, 32)

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise AdapterError(f"architecture {self.architecture!r}: must be one of {known}")
        for name in ("vlm_dim", "dino_dim", "num_queries", "output_dim"):
            _check_count(name, getattr(self, name), least=1)
        unused = _UNUSED[self.architecture]
        for name in ("hidden_dim", "num_layers", "num_heads", "ff_dim"):
            self._check_size(name, used=name not in unused)
        _check_grid("max_grid", self.max_grid)
        _check_grid("dino_max_grid", self.dino_max_grid)
        if "num_heads" not in unused:
            self._check_heads()
        if self.architecture == "bottleneck" and self.hidden_dim % 4:
            raise AdapterError(
                f"hidden_dim {self.hidden_dim}: must be a multiple of 4, the bottleneck is a quarter"
            )
        self._check_output()

    @property
    def head_dim(self) -> int:
        """Channels of one attention head; 0 for an architecture without attention."""
        return self.hidden_dim // self.num_heads if self.num_heads else 0

    @property
    def mode(self) -> str:
        """What the output is: "latent" (for the VAE decoder) or "conditioning" (for the transformer)."""
        return "latent" if self.architecture in LATENT_ARCHITECTURES else "conditioning"

    def _check_size(self, name: str, *, used: bool) -> None:
        value = getattr(self, name)
        if not used and value != 0:
            raise AdapterError(f"{name} {value!r}: must be 0, {self.architecture} does not use it")
        # An MLP without residual blocks is the shallow one of the plan.
        may_be_zero = not used or (self.architecture, name) == ("mlp", "num_layers")
        _check_count(name, value, least=0 if may_be_zero else 1)

    def _check_heads(self) -> None:
        if self.hidden_dim % 32:
            raise AdapterError(f"hidden_dim {self.hidden_dim}: must be a multiple of 32")
        if self.hidden_dim % self.num_heads or self.head_dim not in HEAD_DIMS:
            sizes = ", ".join(map(str, HEAD_DIMS))
            raise AdapterError(
                f"num_heads {self.num_heads}: hidden_dim {self.hidden_dim} must split into heads of {sizes}"
            )

    def _check_output(self) -> None:
        if self.mode == "conditioning":
            if self.output_grid is not None:
                raise AdapterError(f"output_grid {self.output_grid}: must be None for {self.architecture}")
            return
        if self.output_grid is None:
            raise AdapterError(
                f"output_grid None: {self.architecture} needs (time, rows, columns) of the latents"
            )
        _check_grid("output_grid", self.output_grid)
        positions = math.prod(self.output_grid)
        if positions != self.num_queries:
            raise AdapterError(
                f"num_queries {self.num_queries}: must be {positions}, the positions of {self.output_grid}"
            )


def _check_count(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise AdapterError(f"{name} {value!r}: must be a whole number of at least {least}")


def _check_grid(name: str, value: object) -> None:
    if not isinstance(value, tuple) or len(value) != 3:
        raise AdapterError(f"{name} {value!r}: must be three numbers (time, rows, columns)")
    for size in value:
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise AdapterError(f"{name} {value!r}: every size must be a whole number of at least 1")
