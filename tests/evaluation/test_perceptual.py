"""LPIPS without its backbone says so; with one it measures; it never reaches for the network."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from foresight.evaluation import (
    LpipsUnavailableError,
    ReconstructionMetrics,
    find_backbone,
    load_lpips,
    perceptual,
)

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))


@pytest.fixture
def backbone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file of the published layout with small random convolutions, its hash taken for the published one."""
    pytest.importorskip("lpips")
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "0": (64, 3, 11),
        "3": (192, 64, 5),
        "6": (384, 192, 3),
        "8": (256, 384, 3),
        "10": (256, 256, 3),
    }
    state = {}
    for index, (out, into, side) in shapes.items():
        weight = torch.randn(out, into, side, side, generator=generator)
        state[f"features.{index}.weight"] = weight * (2 / (into * side * side)) ** 0.5
        state[f"features.{index}.bias"] = torch.zeros(out)
    file = tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    file.parent.mkdir(parents=True)
    torch.save(state, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setattr(perceptual, "_BACKBONE_SHA256", digest[:8])
    return file


def test_without_weights_the_report_says_what_is_missing() -> None:
    pytest.importorskip("lpips")
    metrics = ReconstructionMetrics()
    clip = torch.zeros(1, 3, 1, 16, 16)
    metrics.update(clip, clip)
    report = metrics.compute()
    assert report.lpips is None
    assert "alexnet-owt-7be5be79.pth" in report.unavailable["lpips"]
    assert "never downloads" in report.unavailable["lpips"]
    assert "\n" not in report.unavailable["lpips"]


def test_without_the_package_the_reason_is_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(LpipsUnavailableError, match="lpips is not installed"):
        load_lpips()


def test_a_damaged_file_is_not_used(backbone: Path) -> None:
    backbone.write_bytes(backbone.read_bytes()[:-1])
    with pytest.raises(LpipsUnavailableError, match="damaged or another file"):
        load_lpips()


def test_the_backbone_is_found_by_default_by_folder_and_by_file(backbone: Path) -> None:
    assert find_backbone() == find_backbone(backbone.parent) == find_backbone(backbone) == backbone
    with pytest.raises(LpipsUnavailableError, match=r"not in .*elsewhere"):
        find_backbone(backbone.parent / "elsewhere")


def test_the_files_own_convolutions_are_used(backbone: Path) -> None:
    network = load_lpips(backbone)
    state = torch.load(backbone, weights_only=True)
    used = network.get_submodule("net").state_dict()
    assert torch.equal(used["slice1.0.weight"], state["features.0.weight"])
    assert torch.equal(used["slice5.10.weight"], state["features.10.weight"])
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.usefixtures("backbone")
def test_with_weights_lpips_is_zero_for_identity_and_grows_with_damage() -> None:
    generator = torch.Generator().manual_seed(1)
    target = torch.rand(1, 3, 2, 64, 64, generator=generator) * 2 - 1
    noise = torch.randn(target.shape, generator=generator)
    scores = []
    for amount in (0.0, 0.1, 0.5):
        metrics = ReconstructionMetrics()
        metrics.update(target + amount * noise, target)
        report = metrics.compute()
        assert "lpips" not in report.unavailable
        scores.append(report.lpips)
    assert scores[0] == 0
    assert scores == sorted(scores)
    assert scores[2] > scores[1] > 0
