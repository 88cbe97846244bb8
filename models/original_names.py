"""Names of tensors in other layouts than the one that a module has."""

from __future__ import annotations

import re

__all__ = ["original_transformer_name", "original_vae_name", "vision_tower_name"]

_LANGUAGE_MODEL = re.compile(r"(model\.|lm_head\.|language_model\.)")
_BLOCK = re.compile(r"(?P<side>up|down)_blocks\.(?P<index>\d+)\.")


def vision_tower_name(name: str) -> str | None:
    """Take a name in a Qwen2.5-VL checkpoint to one in its vision tower; None for the language model's."""
    for prefix in ("model.visual.", "visual."):
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return None if _LANGUAGE_MODEL.match(name) else name


def original_transformer_name(name: str) -> str | None:
    """Take a name in Lightricks' single file to diffusers' `LTXVideoTransformer3DModel`; None for others.

    Follows `convert_ltx_transformer_checkpoint_to_diffusers` of diffusers.
    """
    if name.startswith("vae."):
        return None
    name = name.removeprefix("model.diffusion_model.")
    for original, ours in (
        ("patchify_proj", "proj_in"),
        ("adaln_single", "time_embed"),
        ("q_norm", "norm_q"),
        ("k_norm", "norm_k"),
    ):
        name = name.replace(original, ours)
    return name


def original_vae_name(name: str) -> str | None:
    """Take a name in Lightricks' single file (0.9.5 and later) to `AutoencoderKLLTXVideo`; None for others.

    Follows `convert_ltx_vae_checkpoint_to_diffusers` of diffusers: blocks and samplers take turns in the
    file.
    """
    if not name.startswith("vae."):
        return None
    name = name.removeprefix("vae.")
    statistics = {"mean-of-means": "latents_mean", "std-of-means": "latents_std"}
    if name.startswith("per_channel_statistics."):
        return statistics.get(name.removeprefix("per_channel_statistics."))
    name = _BLOCK.sub(_block_name, name)
    for original, ours in (
        ("res_blocks", "resnets"),
        ("last_time_embedder", "time_embedder"),
        ("last_scale_shift_table", "scale_shift_table"),
    ):
        name = name.replace(original, ours)
    return name


def _block_name(match: re.Match[str]) -> str:
    side, index = match["side"], int(match["index"])
    if side == "up":
        if index == 0:
            return "mid_block."
        block = (index - 1) // 2
        return f"up_blocks.{block}.upsamplers.0." if index % 2 else f"up_blocks.{block}."
    if index == 8:
        return "mid_block."
    return f"down_blocks.{index // 2}.downsamplers.0." if index % 2 else f"down_blocks.{index // 2}."
