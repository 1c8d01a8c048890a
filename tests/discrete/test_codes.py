"""Packing of bits, decompositions and code statistics."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtc import VTCError
from vtc.discrete import codes
from vtc.discrete.types import CodeSpace


@given(parts=st.integers(1, 6), width=st.integers(1, 12), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_packing_round_trip(parts: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(2, (3, 5, parts * width), generator=generator)
    ids = codes.pack_bits(bits, parts)
    assert ids.shape == (3, 5, parts)
    assert torch.equal(codes.unpack_bits(ids, width), bits)


def test_most_significant_bit_first() -> None:
    assert codes.pack_bits(torch.tensor([1, 0, 0, 0, 1, 1]), 2).tolist() == [4, 3]
    assert codes.bit_table(2).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


@pytest.mark.parametrize("name", ["1-16", "2-8", "2-10", "2-12", "3-8", "4-8"])
def test_every_published_decomposition(name: str) -> None:
    parts, width = map(int, name.split("-"))
    space = CodeSpace(4, (2,) * (parts * width))
    split = space.split(parts)
    assert split.vocab == (2**width,) * parts and split.bits == space.bits
    bits = torch.randint(2, (2, 4, parts * width), generator=torch.Generator().manual_seed(0))
    ids = codes.regroup(bits, space, split)
    assert torch.equal(split.check(ids), ids)
    assert torch.equal(codes.regroup(ids, split, space), bits)


def test_regroup_between_unequal_decompositions() -> None:
    a, b = CodeSpace(1, (8, 4, 2)), CodeSpace(1, (2, 32))
    ids = torch.tensor([[[5, 2, 1]]])  # 101 10 1
    assert codes.regroup(ids, a, b).tolist() == [[[1, 0b01101]]]
    assert torch.equal(codes.regroup(codes.regroup(ids, a, b), b, a), ids)


def test_hamming_labels_are_distributions_around_the_code() -> None:
    weight = codes.hamming_soft_labels(torch.tensor([1.0, 0.0, 1.0]), radius=1)
    assert weight.argmax() == 0b101
    assert weight.sum() == pytest.approx(1.0)
    assert (weight > 0).sum() == 4


@pytest.mark.parametrize("radius", [0, 1, 3])
def test_hamming_labels_by_counting(radius: int) -> None:
    bits = codes.bit_table(4)[[0, 6, 15]].view(3, 1, 4)
    distance = (bits.unsqueeze(-2) != codes.bit_table(4)).sum(-1)
    weight = torch.exp(-2.0 * distance) * (distance <= radius)
    wanted = weight / weight.sum(-1, keepdim=True)
    torch.testing.assert_close(codes.hamming_soft_labels(bits, radius, 2.0), wanted)
    assert codes.hamming_soft_labels(torch.ones(2, 3, 16), radius).shape == (2, 3, 2**16)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32])
def test_codes_of_any_whole_numbers_become_int64(dtype: torch.dtype) -> None:
    bits = torch.randint(2, (2, 3, 4)).to(dtype)
    checked = CodeSpace(3, (2,) * 4).check(bits)
    assert checked.dtype == torch.long and torch.equal(checked, bits.long())
    wide = torch.full((1, 3, 1), 200, dtype=torch.uint8)
    assert CodeSpace(3, (256,)).check(wide).dtype == torch.long


def test_statistics() -> None:
    ids = torch.tensor([0, 0, 1, 1])
    assert codes.code_usage(ids, 4) == 0.5
    assert codes.perplexity(codes.code_histogram(ids, 4)) == pytest.approx(2.0, rel=1e-4)
    half = torch.tensor([[0, 1], [1, 1]])
    assert codes.bit_entropy(half) == pytest.approx(0.5)
    constant = torch.tensor([[0, 1], [1, 0]]).expand(9, 2, 2)  # tokens differ, images do not
    assert codes.bit_entropy(constant) == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: codes.pack_bits(torch.zeros(5), 2),
        lambda: codes.pack_bits(torch.zeros(64), 1),
        lambda: codes.unpack_bits(torch.tensor([4]), 2),
        lambda: codes.unpack_bits(torch.tensor([-1]), 2),
        lambda: CodeSpace(4, (2,) * 10).split(3),
        lambda: CodeSpace(4, (3,)).split(1),
        lambda: CodeSpace(4, (2,), (2, 3)),
        lambda: CodeSpace(0, (2,)),
        lambda: CodeSpace(2, ()),
        lambda: CodeSpace(2, (4,)).check(torch.full((1, 2, 1), 4)),
        lambda: CodeSpace(2, (4,)).check(torch.zeros(1, 3, 1, dtype=torch.long)),
        lambda: CodeSpace(2, (4,)).check(torch.zeros(1, 2, 1)),
        lambda: codes.regroup(torch.zeros(1, 1, 1).long(), CodeSpace(1, (4,)), CodeSpace(1, (8,))),
    ],
)
def test_bad_input(call) -> None:
    with pytest.raises(VTCError):
        call()
