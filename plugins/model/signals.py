"""What signals are made of: where they come from, and the sums that no kernel does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from vtc.functional.similarity import token_similarity
from vtc.kernels.attention_received import attention_received
from vtc.kernels.cls_attention import cls_attention
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


class Heads(NamedTuple):
    """What one call of an attention function was given.

    Attributes:
        query, key: `[B, H, L, d]`.
        scale: factor on the logits.
        mask: what the function got as a mask, None when every query sees every key.
    """

    query: Tensor
    key: Tensor
    scale: float
    mask: Tensor | None = None


def of_attention(
    kind: str,
    calls: Sequence[Heads],
    skip: int,
    fuse: Callable[[Tensor], Tensor],
    windows: bool = False,
    pads: bool = False,
) -> tuple[Tensor, bool]:
    """A signal of one attention layer, for all tiles of all images.

    Args:
        kind: one of `ATTENTION`.
        calls: of the layer, in order; a tower may go image by image, tile by tile or window by window.
        skip: tokens in front of a tile's patches: 1 where there is a CLS token.
        fuse: values of patches `[S0, ...]` as means over the tokens made of them, `[S, ...]`.
        windows: whether calls may be windows of different size.
        pads: whether what `fuse` leaves out is padding, not part of a token.

    Returns:
        Values of all tokens `[S, ...]`, or of all tiles `[T, ...]`, and whether it is these.
    """
    if kind == "cls_query":
        return joined([c.query[:, :, 0].flatten(1) for c in calls]), True
    if kind in ("keys", "key_mean"):
        keys = [
            c.key.transpose(1, 2).flatten(2) if kind == "keys" else c.key.mean(1) for c in calls
        ]
        if not skip:
            return fuse(joined([k.flatten(0, 1) for k in keys])), False
        whole = joined(keys)
        patches = whole[:, 1:].flatten(0, 1)
        fused = fuse(patches)
        if fused is patches:
            return whole, True
        return torch.cat([whole[:, :1], fused.unflatten(0, (len(whole), -1))], 1), True
    patches = joined([_attended(kind, c, windows)[:, skip:].flatten() for c in calls])
    values = fuse(patches[:, None])[:, 0]
    if kind != "cls_logits" and not pads and len(values) < len(patches):
        values = values * (len(patches) / len(values))  # the sum over a token's patches
    return values, False


def _attended(kind: str, heads: Heads, windows: bool) -> Tensor:
    """`[B, L]` of one call."""
    if kind == "attention_received":
        query, key, scale, mask = heads
        if mask is not None:
            return masked_attention_received(query, key, scale, mask)
        received = attention_received(query, key, scale)
        # of windows: sums over queries, so that a tile's windows weigh by their size
        return received * received.shape[1] if windows else received
    logits, probabilities = cls_attention(heads.query[:, :, 0], heads.key, heads.scale)
    return logits if kind == "cls_logits" else probabilities


def of_words(image: Tensor, words: Tensor) -> Tensor:
    """`text_similarity`, `[T, N]`, of tiles `[T, N, D]` and words `[L, D]`."""
    if not len(words):
        return image.new_zeros(image.shape[:2])  # nothing is asked, so no patch fits better
    flat = image.detach().flatten(0, 1)[None].float()
    return token_similarity(flat, words.float())[0].mean(-1).view(image.shape[:2])


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Parts behind each other; one alone as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


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
