"""Names in Lightricks' single-file checkpoints, from the names in diffusers' modules."""

from __future__ import annotations

import re

__all__ = ["original_transformer_name_of", "original_vae_name_of"]


def original_transformer_name_of(name: str) -> str:
    for ours, original in (
        ("proj_in", "patchify_proj"),
        ("time_embed", "adaln_single"),
        ("norm_q", "q_norm"),
        ("norm_k", "k_norm"),
    ):
        name = name.replace(ours, original)
    return f"model.diffusion_model.{name}"


def original_vae_name_of(name: str) -> str:
    statistics = {"latents_mean": "mean-of-means", "latents_std": "std-of-means"}
    if name in statistics:
        return f"vae.per_channel_statistics.{statistics[name]}"
    for pattern, index in (
        (r"(encoder\.)mid_block\.", lambda _: "down_blocks.8."),
        (r"(decoder\.)mid_block\.", lambda _: "up_blocks.0."),
        (r"(encoder\.)down_blocks\.(\d)\.downsamplers\.0\.", lambda block: f"down_blocks.{2 * block + 1}."),
        (r"(encoder\.)down_blocks\.(\d)\.(?=resnets)", lambda block: f"down_blocks.{2 * block}."),
        (r"(decoder\.)up_blocks\.(\d)\.upsamplers\.0\.", lambda block: f"up_blocks.{2 * block + 1}."),
        (r"(decoder\.)up_blocks\.(\d)\.", lambda block: f"up_blocks.{2 * block + 2}."),
    ):
        if match := re.match(pattern, name):
            block = int(match[2]) if match.re.groups > 1 else 0
            name = f"{match[1]}{index(block)}{name[match.end() :]}"
            break
    name = name.replace("resnets", "res_blocks")
    name = re.sub(r"^decoder\.(time_embedder|scale_shift_table)", r"decoder.last_\1", name)
    return f"vae.{name}"
