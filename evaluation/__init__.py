"""Metrics on frames and features, the controls they are read against, and the gates they must pass."""

from __future__ import annotations

from .baselines import mean_colour, other_clip, static_frame
from .gates import GATES, Gate, Grade, grade, meets_bar, param_efficiency
from .iou import box_iou, mask_iou, masks_to_boxes, segment_by_colour
from .metrics import MetricReport, ReconstructionMetrics
from .perceptual import LpipsUnavailableError, find_backbone, load_lpips, lpips_distance
from .photographs import PHOTOGRAPHS, load_photographs, pan_and_zoom
from .similarity import latent_cosine, latent_mse, ms_ssim, ms_ssim_scales, psnr, ssim

__all__ = [
    "GATES",
    "PHOTOGRAPHS",
    "Gate",
    "Grade",
    "LpipsUnavailableError",
    "MetricReport",
    "ReconstructionMetrics",
    "box_iou",
    "find_backbone",
    "grade",
    "latent_cosine",
    "latent_mse",
    "load_lpips",
    "load_photographs",
    "lpips_distance",
    "mask_iou",
    "masks_to_boxes",
    "mean_colour",
    "meets_bar",
    "ms_ssim",
    "ms_ssim_scales",
    "other_clip",
    "pan_and_zoom",
    "param_efficiency",
    "psnr",
    "segment_by_colour",
    "ssim",
    "static_frame",
]
