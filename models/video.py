"""LTX-Video: from videos to latents, from conditioning to latents, from latents to videos."""

from __future__ import annotations

from foresight.models.decoder import LTXDecoder
from foresight.models.denoiser import Conditioning, LTXDenoiser
from foresight.models.latents import LTXLatentExtractor, denormalize_latents, normalize_latents

__all__ = [
    "Conditioning",
    "LTXDecoder",
    "LTXDenoiser",
    "LTXLatentExtractor",
    "denormalize_latents",
    "normalize_latents",
]
