"""Still backgrounds with the statistics of natural images, made in batches on any device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["TEXTURES", "dead_leaves", "gradient", "pink_noise", "stripes"]

NUM_LEAVES = 110


def uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    """Draw uniform numbers on the generator's device: float32 of `shape` in [low, high)."""
    return torch.rand(shape, generator=generator, device=generator.device) * (high - low) + low


def colours(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw RGB colours, float32 [*shape, 3] in [0, 1], a mixture of muted and strongly saturated ones.

    Without strong chroma in the clips a video autoencoder learns to answer photographs in grey.
    """
    rgb = uniform((*shape, 3), 0.0, 1.0, generator)
    grey = rgb.mean(-1, keepdim=True)
    saturation = uniform((*shape, 1), 0.2, 1.8, generator)
    return (grey + (rgb - grey) * saturation).clamp(0, 1)


def gradient(batch: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Draw smooth colour gradients: float32 [batch, 3, height, width] in [0, 1]."""
    control = colours((batch, 3, 4), generator).permute(0, 3, 1, 2)
    return functional.interpolate(control, size, mode="bicubic", align_corners=True).clamp(0, 1)


def pink_noise(batch: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Draw coloured 1/f^a noise, a in [1, 1.8]: float32 [batch, 3, height, width] in [0, 1]."""
    height, width = size
    device = generator.device
    rows = torch.fft.fftfreq(height, device=device)[:, None] * height
    columns = torch.fft.rfftfreq(width, device=device)[None] * width
    frequency = (rows.square() + columns.square()).sqrt().clamp(min=1.0)
    exponent = uniform((batch, 1, 1, 1), 1.0, 1.8, generator)
    white = torch.randn((batch, 3, height, width), generator=generator, device=device)
    noise: Tensor = torch.fft.irfft2(
        torch.fft.rfft2(white) * frequency.log().neg().mul(exponent).exp(), s=size
    )
    noise = noise / noise.std((2, 3), keepdim=True).clamp(min=1e-6)
    luminance, chroma = noise[:, :1], noise * uniform((batch, 3, 1, 1), 0.1, 0.9, generator)
    base = colours((batch,), generator)[..., None, None] * 0.6 + 0.2
    return (base + uniform((batch, 1, 1, 1), 0.08, 0.25, generator) * (luminance + chroma)).clamp(0, 1)


def stripes(batch: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Draw soft or hard stripes and checkers in two colours: float32 [batch, 3, height, width] in [0, 1]."""
    row, column = pixel_grid(size, generator.device)
    pattern = torch.ones((batch, *size), device=generator.device)
    crossed = torch.rand((batch, 1, 1), generator=generator, device=generator.device) < 0.5
    for second in (False, True):
        angle = uniform((batch, 1, 1), 0.0, math.pi, generator)
        period = uniform((batch, 1, 1), math.log(14.0), math.log(100.0), generator).exp()
        phase = uniform((batch, 1, 1), 0.0, 2 * math.pi, generator)
        wave = torch.sin((row * angle.sin() + column * angle.cos()) * 2 * math.pi / period + phase)
        wave = torch.tanh(wave * uniform((batch, 1, 1), 0.7, 8.0, generator))
        pattern = torch.where(crossed, pattern * wave, pattern) if second else pattern * wave
    first, other = colours((2, batch), generator)[..., None, None].unbind(0)
    return first + (other - first) * (pattern[:, None] * 0.5 + 0.5)


def dead_leaves(batch: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Draw occluding ellipses and boxes: float32 [batch, 3, height, width] in [0, 1].

    Sizes follow the power law that makes the image scale-invariant (Lee, Mumford and Huang, 2001). An image has its
    own palette, smallest size and focus, as photographs have; each leaf is shaded and carries a share of one texture.
    """
    height, width = size
    device = generator.device
    row, column = pixel_grid(size, device)
    canvas = gradient(batch, size, generator)
    texture = pink_noise(batch, size, generator) - 0.5
    shape = (NUM_LEAVES, batch, 1, 1)
    centre_row, centre_column = uniform(shape, 0, height, generator), uniform(shape, 0, width, generator)
    smallest = uniform((batch, 1, 1), math.log(4.0), math.log(30.0), generator).exp()
    inverse_square = uniform(shape, 0.0, 1.0, generator) * (smallest**-2 - (0.5 * height) ** -2)
    radius = (inverse_square + (0.5 * height) ** -2).rsqrt()
    aspect = uniform(shape, -0.7, 0.7, generator).exp()
    angle = uniform(shape, 0.0, math.pi, generator)
    boxy = torch.rand(shape, generator=generator, device=device) < 0.4
    softness = uniform((batch, 1, 1), -1.0, 1.8, generator).exp().clamp(min=1.0)
    colour = palette_colours(NUM_LEAVES, batch, generator)[..., None, None]
    shade = uniform((NUM_LEAVES, batch, 3, 1, 1), -0.2, 0.2, generator)
    grain = uniform((NUM_LEAVES, batch, 1, 1, 1), 0.0, 0.7, generator)
    for leaf in range(NUM_LEAVES):
        y, x = row - centre_row[leaf], column - centre_column[leaf]
        sine, cosine = angle[leaf].sin(), angle[leaf].cos()
        u = (x * cosine + y * sine) / (radius[leaf] * aspect[leaf])
        v = (y * cosine - x * sine) / (radius[leaf] / aspect[leaf])
        extent = torch.where(boxy[leaf], torch.maximum(u.abs(), v.abs()), torch.hypot(u, v))
        alpha = (0.5 + (1.0 - extent) * radius[leaf] / softness).clamp(0, 1)[:, None]
        paint = colour[leaf] + shade[leaf] * u.clamp(-1, 1)[:, None] + grain[leaf] * texture
        canvas = torch.lerp(canvas, paint, alpha)
    return canvas.clamp(0, 1)


def palette_colours(count: int, batch: int, generator: torch.Generator) -> Tensor:
    """Draw `count` colours per image around three of its own, some images muted: float32 [count, batch, 3]."""
    palette = colours((batch, 3), generator)
    weights = uniform((count, batch, 3), 0.0, 1.0, generator).pow(4)
    weights = weights / weights.sum(-1, keepdim=True)
    mixed = torch.einsum("cbp,bpr->cbr", weights, palette)
    own = colours((count, batch), generator)
    mixed = torch.lerp(mixed, own, uniform((batch, 1), 0.0, 0.7, generator))
    brightness = uniform((count, batch, 1), 0.5, 1.3, generator)
    return (mixed * brightness).clamp(0, 1)


def pixel_grid(size: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows [height, 1] and columns [1, width] of pixel centres in pixels, float32."""
    height, width = size
    rows = torch.arange(height, device=device, dtype=torch.float32)[:, None]
    return rows + 0.5, torch.arange(width, device=device, dtype=torch.float32)[None] + 0.5


TEXTURES: Mapping[str, tuple[float, Callable[[int, tuple[int, int], torch.Generator], Tensor]]] = {
    "gradient": (0.12, gradient),
    "stripes": (0.08, stripes),
    "pink_noise": (0.25, pink_noise),
    "dead_leaves": (0.55, dead_leaves),
}
