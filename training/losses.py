"""Differences between videos and latents, differentiable and capturable in a CUDA graph."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["gaussian_kl", "opponent_colours", "pixel_loss", "relative_error", "structural_loss", "video_loss"]


def fold_time(video: Tensor) -> Tensor:
    """Turn [B, C, T, H, W] into images [B * T, C, H, W]."""
    return video.transpose(1, 2).flatten(0, 1)


def structural_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """One minus the mean SSIM of two videos [B, 3, T, H, W] in [-1, 1], with a uniform 7 x 7 window.

    Values are taken as they are, around zero, which makes the luminance term strict about mid-grey.
    Wang et al., "Image quality assessment: from error visibility to structural similarity" (2004).
    """
    x, y = fold_time(prediction).float(), fold_time(target).float()
    first, second = (2 * 0.01) ** 2, (2 * 0.03) ** 2
    moments = functional.avg_pool2d(torch.cat((x, y, x * x, y * y, x * y), 1), 7, 1)
    mean_x, mean_y, square_x, square_y, product = moments.chunk(5, 1)
    variance_x, variance_y = square_x - mean_x.square(), square_y - mean_y.square()
    covariance = product - mean_x * mean_y
    similarity = (2 * mean_x * mean_y + first) * (2 * covariance + second)
    similarity = similarity / (
        (mean_x.square() + mean_y.square() + first) * (variance_x + variance_y + second)
    )
    return 1 - similarity.mean()


def opponent_colours(video: Tensor) -> Tensor:
    """Red against green and blue against yellow: [B, 3, ...] -> [B, 2, ...]."""
    red, green, blue = video.unbind(1)
    return torch.stack((red - green, blue - (red + green) / 2), 1)


def pixel_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute plus mean squared difference."""
    difference = prediction.float() - target.float()
    return difference.abs().mean() + difference.square().mean()


def video_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """The reconstruction loss of the video autoencoder on [B, 3, T, H, W] in [-1, 1].

    L1 and squared error, structure, the same picture at a quarter and a sixteenth of its size (so that large areas
    keep their tone) and opponent colours (so that chroma is not traded for luminance).
    """
    prediction = prediction.float()
    x, y = fold_time(prediction), fold_time(target)
    coarse = functional.avg_pool2d(x - y, 4)
    coarser = functional.avg_pool2d(coarse, 4)
    chroma = (opponent_colours(prediction) - opponent_colours(target)).abs().mean()
    scales = coarse.abs().mean() + coarser.abs().mean()
    return (
        pixel_loss(prediction, target) + 0.1 * structural_loss(prediction, target) + 0.5 * (scales + chroma)
    )


def gaussian_kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """Divergence of N(mean, exp(logvar)) from N(0, 1), averaged over elements."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def relative_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared error over the target's variance: 0 is perfect, 1 is as good as the mean."""
    prediction, target = prediction.float(), target.float()
    return (prediction - target).square().mean() / target.var().clamp(min=1e-6)
