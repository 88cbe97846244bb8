"""The stacks that ship: sizes, sources and schedules, as values in one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["ARCHITECTURES", "STACKS", "StackConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StackConfig:
    """One set of frozen models: what they are, what sizes they see, and how they are sampled.

    Sizes are `(height, width)` in pixels; `vlm_frames` and `dino_frames` are indices into a chunk.
    Raises ValueError for a size that the video decoder cannot represent (multiples of 32, 8k+1 frames).
    """

    name: str
    size: tuple[int, int]
    num_frames: int
    fps: float
    vlm_size: tuple[int, int]
    vlm_frames: tuple[int, ...]
    dino_size: tuple[int, int]
    dino_frames: tuple[int, ...]
    vlm: str
    dino: str
    transformer: str
    vae: str
    schedule: str
    schedule_shift: float = 1.0
    causal_positions: bool = False
    decode_timestep: float | None = None
    decode_noise_scale: float = 0.0

    def __post_init__(self) -> None:
        height, width = self.size
        if height % 32 or width % 32:
            raise ValueError(f"size {height}x{width}: height and width must be multiples of 32")
        if self.num_frames % 8 != 1:
            raise ValueError(f"num_frames {self.num_frames}: a chunk must have 8k+1 frames")
        if self.schedule not in ("linear", "distilled"):
            raise ValueError(f"schedule {self.schedule!r}: must be 'linear' or 'distilled'")
        for frame in (*self.vlm_frames, *self.dino_frames):
            if not 0 <= frame < self.num_frames:
                raise ValueError(f"frame index {frame}: a chunk has frames 0 to {self.num_frames - 1}")

    @property
    def latent_size(self) -> tuple[int, int, int]:
        """Frames, rows and columns of a chunk's latents (LTX-Video: 8x fewer in time, 32x in space)."""
        return (self.num_frames - 1) // 8 + 1, self.size[0] // 32, self.size[1] // 32


STACKS: Mapping[str, StackConfig] = {
    "nano": StackConfig(
        name="nano",
        size=(128, 192),
        num_frames=9,
        fps=24.0,
        vlm_size=(112, 168),
        vlm_frames=(0, 1, 2, 3, 4, 5, 6, 7, 8),
        dino_size=(224, 224),
        dino_frames=(0, 4, 8),
        vlm="vlm",
        dino="dino",
        transformer="transformer",
        vae="vae",
        schedule="linear",
        schedule_shift=2.0,
    ),
    "full": StackConfig(
        name="full",
        size=(512, 768),
        num_frames=9,
        fps=24.0,
        vlm_size=(448, 672),
        vlm_frames=(1, 2, 3, 4, 5, 6, 7, 8),
        dino_size=(224, 224),
        dino_frames=(4,),
        vlm="Qwen/Qwen2.5-VL-7B-Instruct",
        dino="timm/vit_large_patch14_dinov2.lvd142m",
        # Of 0.9.8 distilled, only the 13B model has a repository in diffusers' layout; the 2B model is a
        # single file. Lightricks/LTX-Video-0.9.5 is a 2B model in that layout, but neither 0.9.8 nor
        # distilled.
        transformer="Lightricks/LTX-Video/ltxv-2b-0.9.8-distilled.safetensors",
        vae="Lightricks/LTX-Video/ltxv-2b-0.9.8-distilled.safetensors",
        schedule="distilled",
        causal_positions=True,
        decode_timestep=0.05,
        decode_noise_scale=0.025,
    ),
}

# Keyword arguments of the libraries' own configurations, so that a stack can be built without any download.
ARCHITECTURES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "nano": {
        "vlm": {
            "depth": 5,
            "hidden_size": 160,
            "num_heads": 4,
            "intermediate_size": 480,
            "window_size": 112,
            "fullatt_block_indexes": [1, 4],
            "out_hidden_size": 3584,
        },
        "dino": {
            "img_size": 224,
            "patch_size": 14,
            "embed_dim": 192,
            "depth": 6,
            "num_heads": 3,
            "num_classes": 0,
            "global_pool": "token",
            "init_values": 1e-5,
        },
        "transformer": {
            "num_layers": 8,
            "num_attention_heads": 4,
            "attention_head_dim": 64,
            "cross_attention_dim": 256,
            "caption_channels": 4096,
        },
        "vae": {
            "block_out_channels": [64, 64, 128, 128],
            "down_block_types": ["LTXVideo095DownBlock3D"] * 3,
            "spatio_temporal_scaling": [True, True, True],
            "layers_per_block": [1, 1, 1, 0],
            "downsample_type": ["spatiotemporal"] * 3,
            "decoder_block_out_channels": [64, 64, 80],
            "decoder_layers_per_block": [1, 1, 1, 1],
            "decoder_spatio_temporal_scaling": [True, True, True],
            "decoder_inject_noise": [False] * 4,
            "upsample_residual": [True] * 3,
            "upsample_factor": [1] * 3,
            "timestep_conditioning": False,
        },
    },
    "full": {
        # Qwen/Qwen2.5-VL-7B-Instruct, vision_config.
        "vlm": {
            "depth": 32,
            "hidden_size": 1280,
            "num_heads": 16,
            "intermediate_size": 3420,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "out_hidden_size": 3584,
        },
        # timm's vit_large_patch14_dinov2, at the size that the stack looks at.
        "dino": {
            "img_size": 224,
            "patch_size": 14,
            "embed_dim": 1024,
            "depth": 24,
            "num_heads": 16,
            "num_classes": 0,
            "global_pool": "token",
            "init_values": 1e-5,
        },
        "transformer": {
            "num_layers": 28,
            "num_attention_heads": 32,
            "attention_head_dim": 64,
            "cross_attention_dim": 2048,
            "caption_channels": 4096,
        },
        # The autoencoder of every release from 0.9.5 on (diffusers' scripts/convert_ltx_to_diffusers.py).
        "vae": {
            "block_out_channels": [128, 256, 512, 1024, 2048],
            "down_block_types": ["LTXVideo095DownBlock3D"] * 4,
            "spatio_temporal_scaling": [True] * 4,
            "layers_per_block": [4, 6, 6, 2, 2],
            "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
            "decoder_block_out_channels": [256, 512, 1024],
            "decoder_layers_per_block": [5, 5, 5, 5],
            "decoder_spatio_temporal_scaling": [True] * 3,
            "decoder_inject_noise": [False] * 4,
            "upsample_residual": [True] * 3,
            "upsample_factor": [2] * 3,
            "timestep_conditioning": True,
            "spatial_compression_ratio": 32,
            "temporal_compression_ratio": 8,
        },
    },
}
