"""How close a reconstruction is to its input, summed up chunk by chunk while the clip is still running."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["QualityMeter"]

_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2
# Identical clips would be infinitely many dB apart from noise, which JSON cannot hold.
_MAX_PSNR_DB = 100.0


class QualityMeter:
    """PSNR over all pixels of a clip and the mean SSIM of its frames, in constant memory.

    The sums stay on the models' device, so that measuring a chunk does not wait for it. The values are those
    of `foresight.evaluation.similarity.psnr` and `ssim` (Wang et al. 2004: 11x11 Gaussian window of sigma
    1.5, mirrored borders) of the whole clip, without importing torchmetrics.
    """

    def __init__(self) -> None:
        self._squared_error: Tensor | float = 0.0
        self._ssim: Tensor | float = 0.0
        self._values = 0
        self._frames = 0
        self._window: Tensor | None = None

    def add(self, prediction: Tensor, target: Tensor) -> None:
        """Count frames of both, float video [1, 3, T, H, W] in [-1, 1]; what lies outside is clamped."""
        prediction, target = _unit_frames(prediction), _unit_frames(target)
        self._squared_error = self._squared_error + F.mse_loss(prediction, target, reduction="sum").double()
        self._values += target.numel()
        self._frames += target.shape[0]
        if min(target.shape[-2:]) >= _WINDOW:
            self._ssim = self._ssim + self._ssim_of_frames(prediction, target).sum().double()
        else:
            self._ssim = math.nan

    @property
    def finite(self) -> bool:
        """Whether every number of every frame so far was one; waits for the device."""
        return math.isfinite(float(self._squared_error))

    @property
    def psnr_db(self) -> float | None:
        """PSNR in dB, at most 100; None before the first frame and where one is not finite. Waits for the device."""
        if not self._values or not self.finite:
            return None
        mse = float(self._squared_error) / self._values
        return min(_MAX_PSNR_DB, -10 * math.log10(mse)) if mse else _MAX_PSNR_DB

    @property
    def ssim(self) -> float | None:
        """Mean structural similarity; None before the first frame and for pictures under 11 pixels."""
        if not self._frames or math.isnan(ssim := float(self._ssim) / self._frames):
            return None
        return ssim

    def _ssim_of_frames(self, prediction: Tensor, target: Tensor) -> Tensor:
        moments = torch.cat(
            [prediction, target, prediction.square() + target.square(), prediction * target], dim=1
        )
        mean_p, mean_t, squares, product = self._blur(moments).chunk(4, dim=1)
        mean_squares, mean_product = mean_p.square() + mean_t.square(), mean_p * mean_t
        structure = (2 * (product - mean_product) + _C2) / ((squares - mean_squares).clamp(min=0) + _C2)
        luminance = (2 * mean_product + _C1) / (mean_squares + _C1)
        return (structure * luminance).mean((1, 2, 3))

    def _blur(self, planes: Tensor) -> Tensor:
        # The variances cancel, and convolutions on CUDA round fp32 to TF32.
        planes = planes.double() if planes.is_cuda else planes
        if self._window is None:
            offsets = torch.arange(_WINDOW, device=planes.device, dtype=planes.dtype) - _WINDOW // 2
            window = torch.exp(-(offsets / _SIGMA).square() / 2)
            self._window = (window / window.sum()).expand(planes.shape[1], 1, 1, -1)
        half, channels = _WINDOW // 2, planes.shape[1]
        planes = F.pad(planes, (half, half, half, half), mode="reflect")
        # Two passes of 11 weights for one of 121, and channels last: by default a CPU takes three times as
        # long.
        planes = planes.contiguous(memory_format=torch.channels_last)
        return F.conv2d(
            F.conv2d(planes, self._window.transpose(2, 3), groups=channels), self._window, groups=channels
        )


def _unit_frames(video: Tensor) -> Tensor:
    return video[0].transpose(0, 1).float().clamp(-1, 1).add(1).div(2)
