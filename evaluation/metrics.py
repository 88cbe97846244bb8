"""The figures of a reconstruction, accumulated over clips, and why any could not be measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from .iou import box_iou, mask_iou, masks_to_boxes, segment_by_colour
from .perceptual import LpipsUnavailableError, load_lpips, lpips_distance
from .similarity import check_pair, latent_cosine, latent_mse, ms_ssim, ms_ssim_scales, psnr, ssim

__all__ = ["MetricReport", "ReconstructionMetrics"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricReport:
    """Means over clips: dB for `psnr_db`, fractions for the rest; None where nothing was measured.

    `ms_ssim_scales` below 5 marks an MS-SSIM that compares only with others of as many scales. `num_objects`
    counts the shapes behind the IoUs. `unavailable` maps the name of a figure that could not be measured to
    the reason.
    """

    num_clips: int
    num_frames: int
    psnr_db: float
    ssim: float
    ms_ssim: float
    ms_ssim_scales: int
    lpips: float | None
    mask_iou: float | None
    box_iou: float | None
    num_objects: int
    latent_mse: float | None
    latent_cosine: float | None
    unavailable: Mapping[str, str] = field(default_factory=dict)

    @property
    def spatial_iou(self) -> float | None:
        """The lower of mask and box IoU: the plans ask for one spatial IoU and do not say which."""
        if self.mask_iou is None or self.box_iou is None:
            return None
        return min(self.mask_iou, self.box_iou)

    def to_dict(self) -> dict[str, object]:
        """The report as plain values, ready for JSON."""
        return {**asdict(self), "spatial_iou": self.spatial_iou}


class ReconstructionMetrics:
    """Measures reconstructions against their inputs over any number of batches.

    `lpips` False leaves LPIPS out; `lpips_backbone` is the file or folder of its AlexNet weights, by default
    torch.hub's own checkpoints folder; nothing is ever downloaded. `update` reads nothing back from a GPU.
    """

    def __init__(self, *, lpips: bool = True, lpips_backbone: Path | None = None) -> None:
        self._network: nn.Module | None = None
        self._unavailable: dict[str, str] = {}
        if lpips:
            try:
                self._network = load_lpips(lpips_backbone)
            except LpipsUnavailableError as error:
                self._unavailable["lpips"] = str(error)
        else:
            self._unavailable["lpips"] = "LPIPS was switched off"
        self.reset()

    def reset(self) -> None:
        """Forget every clip seen so far."""
        self._values: dict[str, list[Tensor]] = {}
        self._num_clips = 0
        self._num_frames = 0
        self._scales: int | None = None

    @torch.no_grad()
    def update(
        self,
        prediction: Tensor,
        target: Tensor,
        *,
        mask: Tensor | None = None,
        colour: Tensor | None = None,
        prediction_latents: Tensor | None = None,
        target_latents: Tensor | None = None,
    ) -> None:
        """Take in a batch of reconstructions and their inputs, float video [B, 3, T, H, W] in [-1, 1].

        `mask` holds the exact visible masks of solid shapes, bool [B, T, H, W], or [B, N, T, H, W] for N
        shapes a clip (one that is nowhere visible counts for nothing); `colour` their colours, float [B, 3]
        or [B, N, 3]. Latents are [B, C, T, H, W], both or neither. Every clip counts the same. A letterboxed
        clip is cropped by the caller. Raises ValueError for shapes that do not fit, and for a size with
        another number of MS-SSIM scales than before.
        """
        check_pair(prediction, target)
        if (prediction_latents is None) != (target_latents is None):
            raise ValueError("prediction_latents and target_latents: give both or neither")
        scales = self._check_scales(ms_ssim_scales(target.shape[-2], target.shape[-1]))
        measured = {
            "psnr_db": psnr(prediction, target),
            "ssim": ssim(prediction, target),
            "ms_ssim": ms_ssim(prediction, target),
        }
        if self._network is not None:
            self._network.to(prediction.device)
            measured["lpips"] = lpips_distance(self._network, prediction, target)
        if mask is not None:
            measured["mask_iou"], measured["box_iou"] = _object_iou(prediction, target, mask, colour)
        if prediction_latents is not None and target_latents is not None:
            measured["latent_mse"] = latent_mse(prediction_latents, target_latents)
            measured["latent_cosine"] = latent_cosine(prediction_latents, target_latents)
        for name, values in measured.items():
            self._values.setdefault(name, []).append(values)
        self._scales = scales
        self._num_clips += target.shape[0]
        self._num_frames += target.shape[0] * target.shape[2]

    def _check_scales(self, scales: int) -> int:
        if self._scales is not None and scales != self._scales:
            raise ValueError(
                f"MS-SSIM of {scales} scales cannot be averaged with {self._scales}: reset() for another size"
            )
        return scales

    def compute(self) -> MetricReport:
        """The means over all clips since the last reset; raises ValueError when there were none."""
        if self._scales is None:
            raise ValueError("nothing to report: update() was never called")
        means = {name: self._mean(name) for name in self._values}
        return MetricReport(
            num_clips=self._num_clips,
            num_frames=self._num_frames,
            psnr_db=_known(means["psnr_db"]),
            ssim=_known(means["ssim"]),
            ms_ssim=_known(means["ms_ssim"]),
            ms_ssim_scales=self._scales,
            lpips=means.get("lpips"),
            mask_iou=means.get("mask_iou"),
            box_iou=means.get("box_iou"),
            num_objects=self._num_objects(),
            latent_mse=means.get("latent_mse"),
            latent_cosine=means.get("latent_cosine"),
            unavailable=dict(self._unavailable),
        )

    def _mean(self, name: str) -> float | None:
        values = torch.cat([part.cpu().double() for part in self._values[name]])
        # An object that no frame shows has no IoU; any other NaN is a broken model, and stays one.
        if name in ("mask_iou", "box_iou"):
            values = values[~values.isnan()]
        return float(values.mean()) if values.numel() else None

    def _num_objects(self) -> int:
        return sum(int((~part.isnan()).sum()) for part in self._values.get("mask_iou", []))


def _known(value: float | None) -> float:
    assert value is not None
    return value


def _object_iou(
    prediction: Tensor, target: Tensor, mask: Tensor, colour: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Mask and box IoU of every object, [B * N] each, means over the frames that show it; NaN for none."""
    if mask.ndim == 4:
        mask = mask[:, None]
        colour = None if colour is None else colour[:, None]
    if mask.ndim != 5:
        raise ValueError(f"mask has shape {tuple(mask.shape)}: must be [B, T, H, W] or [B, N, T, H, W]")
    masks, boxes = [], []
    for number in range(mask.shape[1]):
        exact = mask[:, number]
        found = segment_by_colour(
            prediction, exact, target=target, colour=None if colour is None else colour[:, number]
        )
        shown = exact.flatten(2).any(2)
        masks.append(_mean_shown(mask_iou(found, exact), shown))
        boxes.append(_mean_shown(box_iou(masks_to_boxes(found), masks_to_boxes(exact)), shown))
    return torch.cat(masks), torch.cat(boxes)


def _mean_shown(values: Tensor, shown: Tensor) -> Tensor:
    return torch.where(shown, values, 0.0).sum(1) / shown.sum(1)
