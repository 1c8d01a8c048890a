"""Bit packing: kernels against twins, number for number."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.interpreted.data import mask, seeds
from vtc.kernels.bit_packing import (
    pack_bits,
    pack_bits_torch,
    unpack_bits,
    unpack_bits_torch,
)


@given(
    seed=seeds,
    shape=st.sampled_from([(0,), (1,), (3, 5), (2, 2, 40)]),
    width=st.sampled_from([1, 3, 8, 13, 18, 62]),
    bit=st.sampled_from([torch.bool, torch.uint8, torch.int64, torch.float16]),
    strided=st.booleans(),
)
def test_there_and_back(seed, shape, width, bit, strided):
    bits = mask(seed, *shape[:-1], shape[-1] * width, share=0.5).to(bit)
    if strided:
        bits = torch.stack([bits, bits], -1)[..., 0]
    for dtype in (torch.int64, torch.uint8):
        if dtype == torch.uint8 and width > 8:
            continue
        words = pack_bits(bits, width, dtype)
        assert words.dtype == dtype and torch.equal(words, pack_bits_torch(bits, width, dtype))
        back = unpack_bits(words, width, bit)
        assert back.dtype == bit and torch.equal(back, bits)
        assert torch.equal(back, unpack_bits_torch(words, width, bit))


def test_operators():
    bits = mask(0, 2, 12)
    torch.library.opcheck(torch.ops.vtc.pack_bits, (bits, 4, torch.uint8))
    torch.library.opcheck(torch.ops.vtc.unpack_bits, (pack_bits(bits, 4), 4, torch.int64))
    compiled = torch.compile(
        lambda x: unpack_bits(pack_bits(x, 4), 4), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(bits), bits.long())
