"""Bits to whole numbers and back, most significant bit first.

Bytes: reads the bits once and writes the words, or the other way round; n bits of 1 byte a word of 8 in
and 8 out at n = 8 and int64, 1 out as uint8. One launch each; the twin makes int64 copies of all bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vtc.errors import VTCError
from vtc.kernels._dispatch import Kernel, next_power, register, use_triton
from vtc.kernels._rows import load_rows

if TYPE_CHECKING:
    import triton.language as tl

#: most bits of a word: int64 without its sign, and one to spare for the number behind the largest
MOST_BITS = 62


def pack_bits(bits: Tensor, width: int, dtype: torch.dtype = torch.int64) -> Tensor:
    """Bits `[..., K * width]` to words `[..., K]`.

    Args:
        bits: 0 and 1 in any dtype.
        width: bits of a word, 1 to 62, and at most 8 for uint8.
        dtype: of the words, int64 or uint8.

    Raises:
        VTCError: the bits do not divide by `width`, or `width` does not fit the dtype.
    """
    _check(width, dtype)
    if bits.shape[-1] % width:
        raise VTCError(f"width: got {width}, but there are {bits.shape[-1]} bits")
    if use_triton(bits):
        return torch.ops.vtc.pack_bits(bits, width, dtype)
    return pack_bits_torch(bits, width, dtype)


def unpack_bits(words: Tensor, width: int, dtype: torch.dtype = torch.int64) -> Tensor:
    """Words `[..., K]` to bits `[..., K * width]`, the inverse of `pack_bits`.

    Args:
        words: whole numbers from 0 to `2**width - 1`; higher bits are left out.
        width: bits of a word, 1 to 62.
        dtype: of the bits.

    Raises:
        VTCError: `width` is not possible.
    """
    _check(width, torch.int64)
    if use_triton(words):
        return torch.ops.vtc.unpack_bits(words, width, dtype)
    return unpack_bits_torch(words, width, dtype)


def _check(width: int, dtype: torch.dtype) -> None:
    most = {torch.int64: MOST_BITS, torch.uint8: 8}.get(dtype)
    if most is None:
        raise VTCError(f"dtype: got {dtype}, allowed are torch.int64 and torch.uint8")
    if not 1 <= width <= most:
        raise VTCError(f"width: got {width}, allowed for {dtype} are 1 to {most}")


def pack_bits_torch(bits: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """The PyTorch twin."""
    weight = 2 ** torch.arange(width - 1, -1, -1, device=bits.device)
    return (bits.unflatten(-1, (-1, width)).long() * weight).sum(-1).to(dtype)


def unpack_bits_torch(words: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """The PyTorch twin."""
    shift = torch.arange(width - 1, -1, -1, device=words.device)
    return (words.long().unsqueeze(-1) >> shift & 1).flatten(-2).to(dtype)


@Kernel
def _pack(bits, words, count, WIDTH: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_B: tl.constexpr):
    word = tl.program_id(0).to(tl.int64) * BLOCK_W + tl.arange(0, BLOCK_W)
    b = tl.arange(0, BLOCK_B)
    x = load_rows(bits + word * WIDTH, word < count, b, WIDTH, False)
    shift = tl.maximum(WIDTH - 1 - b, 0).to(tl.int64)
    packed = tl.sum(x.to(tl.int64) << shift[None, :], 1)
    tl.store(words + word, packed, mask=word < count)


@Kernel
def _unpack(words, bits, count, WIDTH: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_B: tl.constexpr):
    word = tl.program_id(0).to(tl.int64) * BLOCK_W + tl.arange(0, BLOCK_W)
    b = tl.arange(0, BLOCK_B)
    x = tl.load(words + word, mask=word < count, other=0).to(tl.int64)
    shift = tl.maximum(WIDTH - 1 - b, 0).to(tl.int64)
    tl.store(
        bits + word[:, None] * WIDTH + b[None, :],
        (x[:, None] >> shift[None, :]) & 1,
        mask=(word[:, None] < count) & (b[None, :] < WIDTH),
    )


def launch_pack(bits: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """The Triton path: 1 launch."""
    words = fake_pack(bits, width, dtype)
    _launch(_pack, bits.contiguous(), words, words.numel(), width)
    return words


def launch_unpack(words: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """The Triton path: 1 launch."""
    bits = fake_unpack(words, width, dtype)
    _launch(_unpack, words.contiguous(), bits, words.numel(), width)
    return bits


def _launch(kernel: Kernel, source: Tensor, out: Tensor, count: int, width: int) -> None:
    block = next_power(width)
    words = max(2048 // block, 32)
    kernel[(-(-count // words),)](
        source, out, count, WIDTH=width, BLOCK_W=words, BLOCK_B=block, num_warps=4
    )


def fake_pack(bits: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Words not yet filled."""
    return bits.new_empty(*bits.shape[:-1], bits.shape[-1] // width, dtype=dtype)


def fake_unpack(words: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Bits not yet filled."""
    return words.new_empty(*words.shape[:-1], words.shape[-1] * width, dtype=dtype)


register(
    "pack_bits", "(Tensor bits, int width, ScalarType dtype) -> Tensor", launch_pack, fake_pack
)
register(
    "unpack_bits",
    "(Tensor words, int width, ScalarType dtype) -> Tensor",
    launch_unpack,
    fake_unpack,
)
