"""LPIPS (Zhang et al. 2018) where its backbone is on this machine; otherwise a sentence on what is missing.

The lpips package brings the calibration of the distance, not the AlexNet that it is measured in: torchvision
would fetch that through torch.hub. Nothing here fetches anything: the network is built empty and filled from
a file whose hash is that of the published one, so that a number called LPIPS is LPIPS.
"""

from __future__ import annotations

import hashlib
import importlib.util
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from .similarity import check_pair

__all__ = ["LpipsUnavailableError", "find_backbone", "load_lpips", "lpips_distance"]

# torchvision's AlexNet_Weights.IMAGENET1K_V1; the name ends in the first digits of the file's sha256.
_BACKBONE_FILE = "alexnet-owt-7be5be79.pth"
_BACKBONE_SHA256 = "7be5be79"
# Where lpips/pretrained_networks.py puts AlexNet's convolutions, by their index in torchvision's `features`.
_SLICES = {"0": "slice1", "3": "slice2", "6": "slice3", "8": "slice4", "10": "slice5"}


class LpipsUnavailableError(ValueError):
    """LPIPS cannot be measured here; the message is one line that says what is missing."""


def find_backbone(path: Path | None = None) -> Path:
    """The file of AlexNet's weights: `path` (a file or its folder), else torch.hub's checkpoints folder.

    Never downloads. Raises LpipsUnavailableError where the lpips package or the file is missing.
    """
    if importlib.util.find_spec("lpips") is None:
        raise LpipsUnavailableError("LPIPS is not available: the package lpips is not installed")
    folder = Path(torch.hub.get_dir()) / "checkpoints" if path is None else path
    file = folder / _BACKBONE_FILE if path is None or folder.is_dir() else folder
    if not file.is_file():
        where = "torch.hub's checkpoints folder" if path is None else str(path)
        raise LpipsUnavailableError(
            f"LPIPS is not available: its AlexNet weights ({_BACKBONE_FILE}) are not in {where},"
            " and evaluation never downloads"
        )
    return file


def load_lpips(path: Path | None = None, *, device: torch.device | str = "cpu") -> nn.Module:
    """The LPIPS network (AlexNet, version 0.1), frozen, its backbone read from `find_backbone(path)`.

    Raises LpipsUnavailableError where something is missing or the file is not the published one.
    """
    file = find_backbone(path)
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if not digest.startswith(_BACKBONE_SHA256):
        raise LpipsUnavailableError(
            f"LPIPS is not available: {file.name} has sha256 {digest[:8]}..., not {_BACKBONE_SHA256}...:"
            " a damaged or another file"
        )
    network = _empty_network()
    weights = torch.load(file, map_location="cpu", weights_only=True)
    _fill_backbone(network, weights)
    return network.to(device)


def _empty_network() -> nn.Module:
    import lpips  # type: ignore[import-untyped]

    with warnings.catch_warnings():
        # lpips calls torchvision with an argument that torchvision has deprecated.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torchvision\.models\._utils")
        network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    assert isinstance(network, nn.Module)
    return network.requires_grad_(False)


def _fill_backbone(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy torchvision's `features.N.*` into the slices of lpips' AlexNet."""
    backbone = network.get_submodule("net")
    state = {
        f"{_SLICES[index]}.{index}.{kind}": weights[f"features.{index}.{kind}"]
        for index in _SLICES
        for kind in ("weight", "bias")
    }
    backbone.load_state_dict(state)


def lpips_distance(network: nn.Module, prediction: Tensor, target: Tensor) -> Tensor:
    """LPIPS of every clip, the mean over its frames, float32 [B], 0 for identical clips.

    `network` comes from `load_lpips`, both videos are float [B, 3, T, H, W] in [-1, 1] on its device. Raises
    ValueError for other shapes.
    """
    check_pair(prediction, target)
    values = [
        network(
            clip.transpose(0, 1).float().clamp(-1, 1), reference.transpose(0, 1).float().clamp(-1, 1)
        ).mean()
        for clip, reference in zip(prediction, target, strict=True)
    ]
    return torch.stack(values)
