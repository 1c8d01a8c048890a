"""Codes as bits and as numbers, and statistics of codes.

The most significant bit comes first everywhere, as in ELM (arXiv 2410.16257).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vtc.discrete.types import CodeSpace, bit_width, check_codes
from vtc.errors import VTCError
from vtc.kernels import bit_packing


def pack_bits(bits: Tensor, parts: int = 1) -> Tensor:
    """Bits `[..., n]` to numbers `[..., parts]`: contiguous groups, most significant bit first.

    Raises:
        VTCError: n does not divide by `parts`, or a number would need more than 62 bits.
    """
    count = bits.shape[-1]
    if parts < 1 or count % parts:
        raise VTCError(f"parts: got {parts}, but there are {count} bits")
    width = count // parts
    if width > bit_packing.MOST_BITS:
        raise VTCError(f"parts: got {parts}, but {width} bits do not fit in one number (62 do)")
    return bit_packing.pack_bits(bits, width)


def unpack_bits(ids: Tensor, width: int) -> Tensor:
    """Numbers `[..., K]` to bits `[..., K * width]` (int64), the inverse of `pack_bits`.

    Raises:
        VTCError: a number does not fit in `width` bits.
    """
    if not 1 <= width <= bit_packing.MOST_BITS:
        raise VTCError(f"width: got {width}, allowed are 1 to 62")
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= 2**width):
        raise VTCError(f"ids: got up to {int(ids.max())}, but {width} bits are given")
    return bit_packing.unpack_bits(ids, width)


def regroup(ids: Tensor, source: CodeSpace, target: CodeSpace) -> Tensor:
    """The same bits under another decomposition, `[..., K]` to `[..., K']`.

    Raises:
        VTCError: the two spaces do not hold the same bits, or a code is outside its vocabulary.
    """
    widths = [bit_width(size) for size in target.vocab]
    if sum(bit_width(size) for size in source.vocab) != sum(widths):
        raise VTCError(f"target: {target.vocab} has other bits than {source.vocab}")
    bits = as_bits(check_codes(ids, source.vocab), source.vocab)
    if len(set(widths)) == 1:
        return pack_bits(bits, len(widths))
    return torch.cat([pack_bits(group) for group in bits.split(widths, dim=-1)], dim=-1)


def as_bits(ids: Tensor, vocab: tuple[int, ...]) -> Tensor:
    """Codes `[..., K]` to all their bits `[..., n]`; whether they are in the vocabulary is not asked.

    Raises:
        VTCError: a vocabulary is no power of two.
    """
    widths = [bit_width(size) for size in vocab]
    if len(set(widths)) == 1:
        return bit_packing.unpack_bits(ids, widths[0])
    parts = [
        bit_packing.unpack_bits(x, width) for x, width in zip(ids.split(1, -1), widths, strict=True)
    ]
    return torch.cat(parts, dim=-1)


def bit_table(width: int, device: torch.device | str | None = None) -> Tensor:
    """All bit patterns of `width` bits, int64 `[2**width, width]`, row i holding the number i."""
    return unpack_bits(torch.arange(2**width, device=device).unsqueeze(-1), width)


def hamming_soft_labels(bits: Tensor, radius: int, decay: float = 3.0) -> Tensor:
    """Soft targets over all codes: weight `exp(-decay * distance)` within a Hamming radius.

    Args:
        bits: `[..., d]` in {0, 1}.
        radius: largest Hamming distance that gets weight.
        decay: fall of the weight with the distance.

    Returns:
        `[..., 2**d]`, rows sum to 1.
    """
    distance = bit_table(bits.shape[-1]).sum(-1)  # of every number from 0
    near = (distance <= radius).nonzero().squeeze(-1)  # the codes around 0; xor moves them
    weight = torch.exp(-decay * distance[near].float())
    index = pack_bits(bits) ^ near.to(bits.device)
    label = torch.zeros(*bits.shape[:-1], len(distance), device=bits.device)
    return label.scatter_(-1, index, (weight / weight.sum()).to(label).expand(index.shape))


def code_histogram(ids: Tensor, vocab: int) -> Tensor:
    """Share of each code among all of `ids`, float `[vocab]`."""
    ids = ids.flatten().long()
    # no bincount: on a GPU it would wait for the largest id
    count = ids.new_zeros(vocab).index_add_(0, ids, torch.ones_like(ids))
    return count / max(len(ids), 1)


def perplexity(histogram: Tensor) -> Tensor:
    """`exp(entropy)` of `[vocab]` shares: how many codes are used as if all were used alike."""
    return torch.exp(-(histogram * (histogram + 1e-10).log()).sum())


def code_usage(ids: Tensor, vocab: int) -> Tensor:
    """Share of the vocabulary that occurs in `ids` at least once, a scalar on their device."""
    return (code_histogram(ids, vocab) > 0).float().mean()


def bit_entropy(bits: Tensor) -> Tensor:
    """Mean entropy of the single bits in bits, 1 when each is set half of the time.

    Args:
        bits: `[B, ...]` in {0, 1}; each bit of each token has a rate of its own, over the B images. A
            code that is the same for all images has entropy 0.
    """
    rate = bits.float().mean(0)
    entropy = torch.special.entr(rate) + torch.special.entr(1 - rate)
    return entropy.mean() / math.log(2)
