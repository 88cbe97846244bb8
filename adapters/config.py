"""What one adapter is: its architecture and sizes, as values that check themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass

from foresight.adapters.errors import AdapterError

__all__ = ["ARCHITECTURES", "HEAD_DIMS", "AdapterConfig", "Grid"]

Grid = tuple[int, int, int]

ARCHITECTURES = ("query", "cross_attention", "linear", "mlp", "bottleneck", "lora", "perceiver")
HEAD_DIMS = (32, 64, 128)
_ATTENTION = ("query", "cross_attention", "perceiver")
_LATENT = ("cross_attention", "linear", "mlp")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """Sizes of one adapter; a grid is `(time, rows, columns)` in tokens.

    `output_grid` is the latent grid of the architectures that write latents (cross_attention, linear, mlp)
    and None for those that write conditioning tokens. `max_grid` and `dino_max_grid` bound the learned
    positions of the VLM's and DINO's tokens. Architectures without attention have `num_heads` 0. Raises
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
        for name in (
            "vlm_dim",
            "dino_dim",
            "hidden_dim",
            "num_layers",
            "ff_dim",
            "num_queries",
            "output_dim",
        ):
            _check_count(name, getattr(self, name), least=1)
        _check_count("num_heads", self.num_heads, least=0)
        _check_grid("max_grid", self.max_grid)
        _check_grid("dino_max_grid", self.dino_max_grid)
        self._check_heads()
        self._check_output()

    @property
    def head_dim(self) -> int:
        """Channels of one attention head; 0 for an architecture without attention."""
        return self.hidden_dim // self.num_heads if self.num_heads else 0

    @property
    def mode(self) -> str:
        """What the output is: "latent" (for the VAE decoder) or "conditioning" (in place of a text embedding)."""
        return "latent" if self.architecture in _LATENT else "conditioning"

    def _check_heads(self) -> None:
        if self.architecture not in _ATTENTION:
            if self.num_heads:
                raise AdapterError(
                    f"num_heads {self.num_heads}: must be 0, {self.architecture} has no attention"
                )
            return
        if self.hidden_dim % 32:
            raise AdapterError(f"hidden_dim {self.hidden_dim}: must be a multiple of 32")
        if self.num_heads == 0 or self.hidden_dim % self.num_heads or self.head_dim not in HEAD_DIMS:
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
                f"output_grid None: {self.architecture} needs the latent grid (time, rows, columns)"
            )
        _check_grid("output_grid", self.output_grid)
        if math.prod(self.output_grid) != self.num_queries:
            raise AdapterError(
                f"num_queries {self.num_queries}: must be {math.prod(self.output_grid)}, "
                f"the positions of output_grid {self.output_grid}"
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
