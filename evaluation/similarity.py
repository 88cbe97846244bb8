"""How close a reconstruction is to its input: PSNR, SSIM, MS-SSIM on frames; MSE and cosine on latents.

Every function returns one value a clip, so that a caller may average, compare or plot them. Frames are float
video [B, 3, T, H, W] in [-1, 1]; what lies outside the range is clamped, as a written file would clamp it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["check_pair", "latent_cosine", "latent_mse", "ms_ssim", "ms_ssim_scales", "psnr", "ssim"]

# Identical clips would be infinitely many dB apart from noise, which JSON cannot hold and a mean cannot use.
_MAX_PSNR_DB = 100.0
# Wang, Simoncelli and Bovik, "Multi-scale structural similarity for image quality assessment" (2003).
_MS_SSIM_BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_SSIM_KERNEL = 11


def check_pair(prediction: Tensor, target: Tensor) -> None:
    """Raise ValueError unless both are float video [B, 3, T, H, W] of one shape."""
    for name, video in (("prediction", prediction), ("target", target)):
        if video.ndim != 5 or video.shape[1] != 3 or video.numel() == 0:
            raise ValueError(f"{name} has shape {tuple(video.shape)}: must be [B, 3, T, H, W], nothing empty")
        if not video.is_floating_point():
            raise ValueError(f"{name} is {video.dtype}: must be floating point in [-1, 1]")
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape"
        )


def psnr(prediction: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of every clip in dB, float32 [B]; identical clips score 100 dB.

    Both are float video [B, 3, T, H, W] in [-1, 1] (data range 2); the error is pooled over a clip's frames.
    Raises ValueError for other shapes.
    """
    check_pair(prediction, target)
    difference = prediction.float().clamp(-1, 1) - target.float().clamp(-1, 1)
    mse = difference.square().flatten(1).mean(1)
    return (10 * torch.log10(4 / mse)).clamp(max=_MAX_PSNR_DB)


def ssim(prediction: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of every clip, the mean over its frames, float32 [B], 1 for identical clips.

    Both are float video [B, 3, T, H, W] in [-1, 1], sides of at least 11 pixels; 11x11 Gaussian window of
    sigma 1.5 (Wang et al. 2004), by torchmetrics. Raises ValueError for other shapes.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    check_pair(prediction, target)
    ms_ssim_scales(prediction.shape[-2], prediction.shape[-1])

    def measure(frames: Tensor, reference: Tensor) -> Tensor:
        value = structural_similarity_index_measure(frames, reference, data_range=1.0, reduction="none")
        assert isinstance(value, Tensor)
        return value

    return _per_clip(measure, prediction, target)


def ms_ssim_scales(height: int, width: int) -> int:
    """Scales of MS-SSIM that torchmetrics computes at this size: the published 5 from 176 pixels, else fewer.

    Sides are in pixels. Raises ValueError below 11 pixels, the width of the window.
    """
    side = min(height, width)
    for scales in range(len(_MS_SSIM_BETAS), 0, -1):
        # torchmetrics' own bound, functional/image/ssim.py; its border must fit the coarsest scale too.
        bound = side // max(1, scales - 1) ** 2 >= _SSIM_KERNEL
        if bound and side >> (scales - 1) > _SSIM_KERNEL // 2:
            return scales
    raise ValueError(
        f"frames of {height}x{width} are too small for SSIM: both sides must be at least 11 pixels"
    )


def ms_ssim(prediction: Tensor, target: Tensor) -> Tensor:
    """Multi-scale structural similarity of every clip, the mean over its frames, float32 [B].

    Both are float video [B, 3, T, H, W] in [-1, 1]. Frames too small for the five published scales use the
    finest `ms_ssim_scales(H, W)` of them, their weights scaled to sum to 1: such values compare only with one
    another. Raises ValueError for other shapes and for sides below 11 pixels. By torchmetrics.
    """
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    check_pair(prediction, target)
    weights = _MS_SSIM_BETAS[: ms_ssim_scales(prediction.shape[-2], prediction.shape[-1])]
    betas = tuple(weight / sum(weights) for weight in weights)

    def measure(frames: Tensor, reference: Tensor) -> Tensor:
        return multiscale_structural_similarity_index_measure(
            frames, reference, data_range=1.0, reduction="none", betas=betas
        )

    return _per_clip(measure, prediction, target)


def _per_clip(measure: Callable[[Tensor, Tensor], Tensor], prediction: Tensor, target: Tensor) -> Tensor:
    """Mean of a per-frame measure over each clip; one clip at a time bounds the memory of its windows."""
    values = [
        measure(_frames(clip), _frames(reference)).mean()
        for clip, reference in zip(prediction, target, strict=True)
    ]
    return torch.stack(values).float()


def _frames(clip: Tensor) -> Tensor:
    """Frames [T, 3, H, W] in [0, 1] of a clip [3, T, H, W] in [-1, 1]: SSIM takes means to be positive."""
    # The windowed variance E[x^2] - E[x]^2 cancels, and convolutions on CUDA round fp32 to TF32 by default.
    dtype = torch.float64 if clip.is_cuda else torch.float32
    return (clip.transpose(0, 1).to(dtype).clamp(-1, 1) + 1) / 2


def latent_mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of every clip's latents, float32 [B], in the latents' own units squared.

    Both are [B, ...] of one shape, normally model-space latents [B, C, T, H, W]. Raises ValueError otherwise.
    """
    _check_latents(prediction, target)
    return (prediction.float() - target.float()).square().flatten(1).mean(1)


def latent_cosine(prediction: Tensor, target: Tensor, *, dim: int = 1) -> Tensor:
    """Cosine between channel vectors, averaged over a clip's positions, float32 [B] in [-1, 1].

    Both are [B, ...] of one shape; `dim` is the channel axis: 1 for latents [B, C, T, H, W], -1 for tokens
    [B, N, C]. Raises ValueError for differing shapes.
    """
    _check_latents(prediction, target)
    cosine = torch.nn.functional.cosine_similarity(prediction.float(), target.float(), dim=dim)
    return cosine.reshape(cosine.shape[0], -1).mean(1)


def _check_latents(prediction: Tensor, target: Tensor) -> None:
    if prediction.shape != target.shape or prediction.ndim < 2:
        raise ValueError(
            f"latents {tuple(prediction.shape)} and {tuple(target.shape)}: must be [B, ...] of one shape"
        )
