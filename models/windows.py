"""Where every patch of a Qwen2.5-VL vision tower sits: window order, positions and rotary tables of one grid.

Patches enter in the order of Qwen's processor: temporal patch, merged row, merged column, then the patches
of one merge block. The tower works in window order, which keeps temporal patches apart and, inside each,
groups windows of equal shape (at most four: inner, right edge, lower edge, corner), so that windowed
attention is one plain batched product a shape, without padding or masks. In which order windows stand does
not matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["WindowGroup", "WindowLayout", "build_window_layout", "vision_frequencies"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowGroup:
    """Windows of one shape: their slice of a temporal patch's tokens, and how many tokens each window has."""

    start: int
    stop: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowLayout:
    """The index tensors and rotary tables of one patch grid on one device.

    Orders: "processor" is merge-block-major, "window" is the tower's working order, "natural" is (t, h, w).
    `window_order` [N] takes processor order to window order; `natural_patches` [N] and `natural_tokens`
    [N / merge^2] take window order to natural order; `cos` and `sin` are [1, N / t, 1, 1, head_dim] float32
    in window order.
    """

    grid_thw: tuple[int, int, int]
    groups: tuple[WindowGroup, ...]
    window_order: Tensor
    natural_patches: Tensor
    natural_tokens: Tensor
    cos: Tensor
    sin: Tensor


def build_window_layout(
    grid_thw: tuple[int, int, int],
    *,
    merge: int,
    window: int,
    head_dim: int,
    theta: float,
    device: torch.device,
) -> WindowLayout:
    """Build the layout of a patch grid (t, h, w); `window` is a window's side in merged tokens.

    Follows `get_vision_window_index` and `Qwen2_5_VLVisionRotaryEmbedding` of transformers.
    Raises ValueError for a grid that is not made of whole merge blocks.
    """
    t, h, w = grid_thw
    if min(grid_thw) < 1 or h % merge or w % merge:
        raise ValueError(f"grid {t}x{h}x{w}: rows and columns must be positive multiples of {merge}")
    # Tensors made in inference mode could not be used by a later training step.
    with torch.inference_mode(False), torch.no_grad():
        token_order, groups = _group_windows(h // merge, w // merge, window, merge * merge)
        processor_tokens = torch.arange(h // merge * (w // merge))
        patch_rows, patch_columns = _processor_positions(h, w, merge)
        patch_order = (token_order[:, None] * merge**2 + torch.arange(merge**2)).flatten()
        rows, columns = patch_rows[patch_order], patch_columns[patch_order]
        inverse_patches = torch.empty(h * w, dtype=torch.long)
        inverse_patches[rows * w + columns] = torch.arange(h * w)
        inverse_tokens = torch.empty_like(processor_tokens)
        inverse_tokens[token_order] = processor_tokens
        cos, sin = _rotary_tables(rows, columns, head_dim, theta)
        return WindowLayout(
            grid_thw=grid_thw,
            groups=groups,
            window_order=_repeat_over_time(patch_order, t).to(device),
            natural_patches=_repeat_over_time(inverse_patches, t).to(device),
            natural_tokens=_repeat_over_time(inverse_tokens, t).to(device),
            cos=cos.to(device),
            sin=sin.to(device),
        )


def vision_frequencies(head_dim: int, theta: float) -> Tensor:
    """Return the rotary frequencies `[head_dim / 4]` float32 that rows and columns share."""
    spatial_dim = head_dim // 2
    return 1.0 / (theta ** (torch.arange(0, spatial_dim, 2, dtype=torch.float32) / spatial_dim))


def _group_windows(
    rows: int, columns: int, window: int, patches_per_token: int
) -> tuple[Tensor, tuple[WindowGroup, ...]]:
    tokens = torch.arange(rows * columns).view(rows, columns)
    by_shape: dict[tuple[int, ...], list[Tensor]] = {}
    for top in range(0, rows, window):
        for left in range(0, columns, window):
            piece = tokens[top : top + window, left : left + window]
            by_shape.setdefault(tuple(piece.shape), []).append(piece.flatten())
    groups: list[WindowGroup] = []
    start = 0
    for windows in by_shape.values():
        length = windows[0].numel() * patches_per_token
        groups.append(WindowGroup(start=start, stop=start + length * len(windows), length=length))
        start = groups[-1].stop
    return torch.cat([piece for windows in by_shape.values() for piece in windows]), tuple(groups)


def _processor_positions(h: int, w: int, merge: int) -> tuple[Tensor, Tensor]:
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    blocks = (h // merge, merge, w // merge, merge)
    return rows.reshape(blocks).transpose(1, 2).flatten(), columns.reshape(blocks).transpose(1, 2).flatten()


def _repeat_over_time(order: Tensor, t: int) -> Tensor:
    return (torch.arange(t)[:, None] * order.numel() + order).flatten()


def _rotary_tables(rows: Tensor, columns: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    frequencies = vision_frequencies(head_dim, theta)
    angles = torch.cat([rows[:, None].float() * frequencies, columns[:, None].float() * frequencies], dim=-1)
    angles = torch.cat([angles, angles], dim=-1)[None, :, None, None]
    return angles.cos(), angles.sin()
