"""The bars decide as their words say."""

from typing import Any

from foresight.training.bars import BARS, judge

PATHS = {
    "vae": 30.0,
    "own_conditioning": 29.8,
    "conditioning": 29.0,
    "latent": 29.1,
    "static_frame": 20.0,
    "mean_colour": 15.0,
    "other_clip": 9.0,
}


def measured(**changes: float) -> dict[str, Any]:
    """Sets in which every bar is reached, but for the changed PSNRs."""
    figures = {"ssim": 0.8, "mask_iou": 0.8, "box_iou": 0.8}
    return {
        name: {
            path: {"psnr_db": value, "moving_psnr_db": value, **figures}
            for path, value in {**PATHS, **changes}.items()
        }
        for name in ("textures", "shapes", "photographs")
    }


def missed(sets: dict[str, Any]) -> set[str]:
    return {bar.name for bar in judge(sets) if bar.reached is False}


def test_everything_reached() -> None:
    assert missed(measured()) == set()
    assert all(bar.reached for bar in judge(measured()))
    assert len(judge(measured())) == len(BARS)


def test_the_worst_set_decides() -> None:
    sets = measured()
    sets["shapes"]["conditioning"]["psnr_db"] = 28.4
    assert missed(sets) == {"conditioning adapter below the VAE, worst set, dB"}


def test_each_direction() -> None:
    assert "another clip's features, textures, dB" in missed(measured(other_clip=14.0))
    assert "VAE round trip, photographs, dB" in missed(measured(vae=24.9))
    assert "adapter over the best static frame, moving textures, dB" in missed(measured(static_frame=27.0))


def test_what_was_not_measured_is_left_open() -> None:
    sets = measured()
    for paths in sets.values():
        del paths["own_conditioning"]
    (open_bar,) = [bar for bar in judge(sets) if bar.reached is None]
    assert open_bar.name.startswith("transformer under its own conditioning")
    assert open_bar.value is None
