"""Procedural clips are what they claim: moving, colourful, reproducible, with exact masks."""

import torch

from foresight.training.clips import ATTRIBUTES, ClipPool, make_clips, sample_frames
from foresight.training.shapes import draw_shapes


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_shapes_types_and_ranges() -> None:
    clips = make_clips(6, generator(), size=(64, 96), num_frames=9)
    assert clips.frames.shape == (6, 9, 64, 96, 3)
    assert clips.frames.dtype == torch.uint8
    assert clips.attributes.shape == (6, ATTRIBUTES)
    assert clips.video.shape == (6, 3, 9, 64, 96)
    assert clips.video.amin() >= -1
    assert clips.video.amax() <= 1


def test_the_same_seed_gives_the_same_clips_and_another_seed_others() -> None:
    first, again, other = (make_clips(2, generator(seed), size=(32, 64)).frames for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_moving_clips_move_and_still_ones_stand() -> None:
    canvas = torch.rand(2, 3, 80, 120, generator=generator())
    motion = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    frames = sample_frames(canvas, motion, (64, 96), 9)
    assert torch.equal(frames[0, 0], frames[0, 8])
    # Panning by 2.5 pixels a frame moves the picture 10 columns in four frames.
    torch.testing.assert_close(frames[1, 4, :, :, 10:], frames[1, 8, :, :, :-10], atol=2e-3, rtol=0)


def test_masks_cover_exactly_what_was_painted() -> None:
    blank = torch.full((4, 3, 3, 128, 192), 2.0)
    frames, shapes = draw_shapes(blank, torch.tensor([0, 1, 2, 3]), generator(1))
    painted = (frames != 2.0).all(2)
    union = shapes.masks.any(1)
    assert not painted[0].any()
    assert not shapes.masks[0].any()
    assert (union & ~painted).sum() == 0
    # Only the anti-aliased rim is painted without belonging to a mask.
    assert union.sum() > 0.85 * painted.sum()
    assert shapes.masks.sum(1).max() == 1


def test_a_mask_has_its_shapes_colour() -> None:
    blank = torch.zeros(1, 1, 3, 64, 96)
    frames, shapes = draw_shapes(blank, torch.tensor([1]), generator(2))
    inside = frames[0, 0].permute(1, 2, 0)[shapes.masks[0, 0, 0]]
    torch.testing.assert_close(inside.median(0).values, shapes.colours[0, 0])


def test_half_of_the_clips_have_shapes_and_the_attributes_count_them() -> None:
    clips = make_clips(64, generator(5), size=(32, 32), num_frames=1)
    counts = clips.attributes[:, 4:8].argmax(1)
    assert torch.equal(counts, clips.shapes.present.sum(1))
    assert 16 < int((counts > 0).sum()) < 48


def test_the_pool_draws_its_own_clips() -> None:
    pool = ClipPool(5, device="cpu", seed=9, size=(32, 64), num_frames=9, chunk=2)
    video, attributes = pool.sample(3)
    known = {clip.numpy().tobytes() for clip in pool.frames}
    drawn = ((video.permute(0, 2, 3, 4, 1) + 1) * 127.5).round().to(torch.uint8)
    assert len(pool) == 5
    assert all(clip.contiguous().numpy().tobytes() in known for clip in drawn)
    assert attributes.shape == (3, ATTRIBUTES)
