"""What signals are made of: where they come from, and the sums that no kernel does."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from vtc.tokens import SIGNALS

#: signals that come from hidden states of the tower, from its pooling head, from what the projector or
#: the tower was given, and from the question; all others come from attention
HIDDEN = frozenset({"last_hidden", "patch_embedding", "cls_hidden"})
POOLED = frozenset({"pool_attention", "pool_output"})
GIVEN = frozenset({"projector_input", "pixels"})
TEXT = frozenset(
    {"text_embedding", "text_segments", "text_sequence", "text_similarity", "question_tokens"}
)
ATTENTION = frozenset(SIGNALS) - HIDDEN - POOLED - GIVEN - TEXT
#: those for which a text encoder is needed, and those for which the prompt's own words are
ENCODED = frozenset({"text_embedding", "text_segments", "text_sequence", "patch_embedding"})
WORDS = frozenset({"text_similarity", "question_tokens"})


def token_pixels(tiles: Tensor, grid: tuple[int, int], cell: tuple[int, int]) -> Tensor:
    """`[T, rows * cols, values]`, the pixels behind each token.

    Args:
        tiles: `[T, 3, H, W]`; what is over at the right and at the bottom is left out.
        grid: `(rows, cols)` of tokens.
        cell: `(height, width)` in pixels of what is behind a token.
    """
    (rows, cols), (high, wide) = grid, cell
    cut = tiles[:, :, : rows * high, : cols * wide]
    return rearrange(cut, "t c (y h) (x w) -> t (y x) (c h w)", h=high, w=wide)


def masked_attention_received(
    query: Tensor, key: Tensor, scale: float, mask: Tensor, block: int = 128
) -> Tensor:
    """`kernels.attention_received` where queries do not see all keys: padding, several images.

    Every key gets the mean over the queries that see it; a key that nobody sees, not even itself
    (padding), gets 0 and its query is left out.

    Args:
        query, key: `[B, H, L, d]`.
        scale: factor on the logits.
        mask: `[B, L]`, or `[B, 1, L, L]`, True or 0.0 where attention is allowed.
        block: queries handled at a time.

    Returns:
        Float32 `[B, L]`.
    """
    batch, heads, length, _ = query.shape
    if mask.dim() == 2:
        mask = mask[:, None, None, :].bool()
    allowed = mask if mask.dtype == torch.bool else mask == 0
    allowed = allowed.expand(batch, 1, length, length)
    real = allowed[:, 0].diagonal(dim1=1, dim2=2)  # [B, L]
    total = torch.zeros(batch, length, device=query.device)
    for start in range(0, length, block):
        rows = slice(start, start + block)
        logits = (query[:, :, rows].float() * scale) @ key.float().transpose(-1, -2)
        weights = logits.masked_fill(~allowed[:, :, rows], -torch.inf).softmax(-1)
        weights = weights.masked_fill(~real[:, None, rows, None], 0)
        total += weights.sum((1, 2))
    seen = (allowed[:, 0] & real[:, :, None]).sum(1)
    return (total / (heads * seen.clamp(min=1))).masked_fill(~real, 0)
