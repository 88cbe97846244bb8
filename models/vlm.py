"""What a vision-language model sees: the vision tower of Qwen2.5-VL, run over a batch of clips of one size.

transformers' own forward splits the tokens into windows with lengths copied to the host and calls attention
once a window. This one runs the same modules with the windows batched: no host copies, no loop over windows,
so it can be captured in a CUDA graph. It knows nothing of text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foresight.models.pixels import PixelPreprocessor
from foresight.models.windows import WindowLayout, build_window_layout

__all__ = ["QwenLatentExtractor"]

# transformers' OPENAI_CLIP_MEAN and OPENAI_CLIP_STD, which Qwen's processors use.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class QwenLatentExtractor(nn.Module):
    """Runs a `Qwen2_5_VisionTransformerPretrainedModel` on clips; `size` is (height, width) in pixels.

    `frames` are the indices of a chunk's frames that the tower sees; an odd count is padded with the last.
    Raises ValueError for a size that is not made of whole merged tokens (28 pixels for Qwen2.5-VL).
    """

    tower: Any

    def __init__(self, tower: nn.Module, size: tuple[int, int], frames: Sequence[int]) -> None:
        super().__init__()
        self.tower = tower
        config = self.tower.config
        self.merge: int = config.spatial_merge_size
        self.patch_size: int = config.patch_size
        self.temporal_patch_size: int = config.temporal_patch_size
        self.num_heads: int = config.num_heads
        self.head_dim: int = config.hidden_size // config.num_heads
        self.full_attention_blocks = frozenset(config.fullatt_block_indexes)
        token_pixels = self.merge * self.patch_size
        if size[0] % token_pixels or size[1] % token_pixels:
            raise ValueError(
                f"size {size[0]}x{size[1]}: height and width must be multiples of {token_pixels}"
            )
        self.pixels = PixelPreprocessor(size, frames, CLIP_MEAN, CLIP_STD)
        self._layouts: dict[tuple[tuple[int, int, int], torch.device], WindowLayout] = {}

    @property
    def grid_thw(self) -> tuple[int, int, int]:
        """Temporal patches, rows and columns of patches of the configured size."""
        height, width = self.pixels.size
        return (
            -(-len(self.pixels.frames) // self.temporal_patch_size),
            height // self.patch_size,
            width // self.patch_size,
        )

    @property
    def token_grid(self) -> tuple[int, int, int]:
        """Temporal patches, rows and columns of merged tokens of the configured size."""
        t, h, w = self.grid_thw
        return t, h // self.merge, w // self.merge

    def preprocess(self, video: Tensor) -> Tensor:
        """Map a float video `[B, 3, T, H, W]` in [-1, 1] to float32 patches `[B, t*h*w, 3*2*14*14]`.

        Patches stand in the order of transformers' `Qwen2VLVideoProcessor`: merge block by merge block.
        """
        return self.patchify(self.pixels(video))

    def patchify(self, frames: Tensor) -> Tensor:
        """Cut normalised frames `[B, F, 3, h, w]` into patches `[B, N, 3*2*14*14]`, as `preprocess` says."""
        if missing := -frames.shape[1] % self.temporal_patch_size:
            last = frames[:, -1:].expand(-1, missing, -1, -1, -1)
            frames = torch.cat([frames, last], dim=1)
        side, merge = self.patch_size, self.merge
        batch, count, channels, height, width = frames.shape
        patches = frames.reshape(
            batch,
            count // self.temporal_patch_size,
            self.temporal_patch_size,
            channels,
            height // (side * merge),
            merge,
            side,
            width // (side * merge),
            merge,
            side,
        )
        return patches.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9).flatten(6).flatten(1, 5)

    def forward(
        self,
        pixel_values: Tensor,
        grid_thw: tuple[int, int, int] | None = None,
        *,
        merged: bool = True,
        block: int | None = None,
    ) -> Tensor:
        """Encode patches `[B, t*h*w, 3*2*14*14]` of clips that share one grid (default: the configured one).

        Returns merged tokens `[B, N, out_hidden_size]`, or with `merged=False` the last block's patches
        `[B, t*h*w, hidden_size]`, or with `block=i` those after block i; all in natural (t, h, w) order.
        Run once before a CUDA graph capture: the first call for a grid and device builds its index tensors.
        """
        grid_thw = self.grid_thw if grid_thw is None else grid_thw
        layout = self._layout(grid_thw, pixel_values.device)
        if pixel_values.dim() != 3 or pixel_values.shape[1] != layout.window_order.numel():
            expected = layout.window_order.numel()
            raise ValueError(
                f"pixel_values {tuple(pixel_values.shape)}: must be [B, {expected}, C] for {grid_thw}"
            )
        last = len(self.tower.blocks) - 1
        if block is not None and not 0 <= block <= last:
            raise ValueError(f"block {block}: the tower has blocks 0 to {last}")
        hidden_states = self._embed(pixel_values.index_select(1, layout.window_order))
        for index, layer in enumerate(self.tower.blocks[: (last if block is None else block) + 1]):
            full = index in self.full_attention_blocks
            hidden_states = hidden_states + self._attend(
                layer.attn, layer.norm1(hidden_states), layout, full=full
            )
            hidden_states = hidden_states + layer.mlp(layer.norm2(hidden_states))
        if block is not None or not merged:
            return hidden_states.index_select(1, layout.natural_patches)
        return self._merge(hidden_states).index_select(1, layout.natural_tokens)

    def _embed(self, pixel_values: Tensor) -> Tensor:
        # A convolution whose stride is its kernel is a matrix product, and convolutions in three
        # dimensions are slow where they are not tuned. Under autocast the residual stays in float32.
        weight = self.tower.patch_embed.proj.weight
        hidden_states: Tensor = F.linear(pixel_values.to(weight.dtype), weight.flatten(1))
        return hidden_states.to(weight.dtype)

    def _attend(self, attention: Any, hidden_states: Tensor, layout: WindowLayout, *, full: bool) -> Tensor:
        batch, t = hidden_states.shape[0], layout.grid_thw[0]
        qkv = attention.qkv(hidden_states).view(batch, t, -1, 3, self.num_heads, self.head_dim)
        query, key = _rotate(qkv[:, :, :, :2], layout).unbind(3)
        value = qkv[:, :, :, 2]
        if full:
            attended = self._attend_spans(query, key, value, query.shape[2])
        else:
            pieces = [
                self._attend_spans(
                    query[:, :, group.start : group.stop],
                    key[:, :, group.start : group.stop],
                    value[:, :, group.start : group.stop],
                    group.length,
                )
                for group in layout.groups
            ]
            attended = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)
        projected: Tensor = attention.proj(attended.flatten(1, 2))
        return projected

    def _attend_spans(self, query: Tensor, key: Tensor, value: Tensor, length: int) -> Tensor:
        # [B, t, S, heads, head_dim] -> every span of `length` tokens attends within itself -> [B, t, S, C]
        batch, t, span = query.shape[:3]
        query, key, value = (
            states.reshape(-1, length, self.num_heads, self.head_dim).transpose(1, 2)
            for states in (query, key, value)
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        return attended.transpose(1, 2).reshape(batch, t, span, self.num_heads * self.head_dim)

    def _merge(self, hidden_states: Tensor) -> Tensor:
        merger = self.tower.merger
        normed = merger.ln_q(hidden_states)
        tokens: Tensor = merger.mlp(normed.reshape(normed.shape[0], -1, normed.shape[-1] * self.merge**2))
        return tokens

    def _layout(self, grid_thw: tuple[int, int, int], device: torch.device) -> WindowLayout:
        if (grid_thw, device) not in self._layouts:
            config = self.tower.config
            rope = getattr(config, "rope_parameters", None) or {}
            self._layouts[grid_thw, device] = build_window_layout(
                grid_thw,
                merge=self.merge,
                window=config.window_size // self.merge // self.patch_size,
                head_dim=self.head_dim,
                theta=float(rope.get("rope_theta", 10000.0)),
                device=device,
            )
        return self._layouts[grid_thw, device]


def _rotate(states: Tensor, layout: WindowLayout) -> Tensor:
    # [B, t, S, 2, heads, head_dim]: query and key in one pass, in float32 as transformers does
    wide = states.float()
    first, second = wide.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (wide * layout.cos + turned * layout.sin).to(states.dtype)
