"""Promises: counted from the shape alone, the same behind the way to a worker; no vLLM is needed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.methods.images import images, make
from vtc import VTCError
from vtc.packing import Packing
from vtc.plugins.model.units import Unit, uncut
from vtc.plugins.vllm import spec
from vtc.plugins.vllm.settings import Limits, Wish

TAGGED = Unit(uncut((4, 4), (1, 2), order="thumbnail_last"), fused=True)


@pytest.mark.parametrize("name", ["uniform", "pool", "random", "globalcom2", "token_correlation"])
@given(tokens=images(), retention=st.floats(0.01, 1))
def test_as_many_as_the_method_makes(name, tokens, retention):
    promise = spec.make(Wish(name, retention), Unit(tokens.packing), Limits())
    out = make(name, tokens=promise.tokens).compress(tokens)
    assert promise.length == len(out)
    ids = spec.cut([9] * promise.full, [True] * promise.full, promise)
    assert ids == [9] * len(out)
    places = spec.spaced(promise.full, promise)
    assert len(places) == len(out) and bool((places.diff() >= 0).all())
    assert 0 <= int(places[0]) and int(places[-1]) < promise.full


def test_it_arrives_as_it_was_sent() -> None:
    packing = Packing((4, 4), (2, 2), (100, 90), newline=True)
    made = spec.make(Wish("globalcom2", tokens=7), Unit(packing), Limits(), question=(5, 6))
    sent = made.to_tensor()
    assert sent.dtype == torch.uint8
    assert spec.Spec.from_tensor(sent) == made
    assert spec.Spec.from_tensor(torch.cat([sent, sent.new_zeros(5)])) == made  # padded in a batch
    other = sent.clone()
    text = bytes(sent.tolist()).replace(b'"format":1', b'"format":2')
    other = torch.tensor(list(text), dtype=torch.uint8)
    theirs = spec.Spec.from_tensor(other)  # of another version: how many rows, and of what
    assert (theirs.length, theirs.full) == (made.length, made.full)
    with pytest.raises(VTCError, match="got another format than 1; the same vtc"):
        theirs.create()


def test_tags_between_tiles_stay_and_every_tile_has_its_share() -> None:
    made = spec.make(Wish("uniform", tokens=10), TAGGED, Limits(), tagged=True)
    assert made.length == 10 and sum(made.shares) == 10 and max(made.shares) - min(made.shares) <= 1
    tile = [7, *[9] * 16]
    ids = [*tile, *tile, 3, *tile, 7]
    left = spec.cut(ids, [token == 9 for token in ids], made)
    assert [token for token in left if token != 9] == [7, 7, 3, 7, 7]
    counts = "".join("x" if token == 9 else "|" for token in left).strip("|").replace("||", "|")
    runs = [len(run) for run in counts.split("|")]
    assert runs == [made.shares[1], made.shares[2], made.shares[0]]
    assert [nth for nth, _, _ in made.pieces()] == [1, 2, 0]


def test_another_count_than_vllms_is_an_error() -> None:
    made = spec.make(Wish("uniform", 0.5), Unit(Packing((4, 4))), Limits())
    with pytest.raises(VTCError, match="vLLM gives it 15 tokens, vtc counts 16"):
        spec.cut([9] * 15, [True] * 15, made)


def test_a_count_that_hangs_on_content_is_refused() -> None:
    wish = Wish("globalcom2", 0.5, options='{"single_tile": "official"}')
    with pytest.raises(VTCError, match="known too late for a server"):
        spec.make(wish, Unit(Packing((4, 4))), Limits())
    with pytest.raises(VTCError, match="at most 0.25"):
        spec.make(Wish("uniform", 0.5), Unit(Packing((4, 4))), Limits(most=0.25))


def test_tags_between_tiles_leave_no_choice_among_them() -> None:
    with pytest.raises(
        VTCError, match="vtc_method: 'divprune' shares tokens .* allowed here are uniform"
    ):
        spec.make(Wish("divprune", tokens=10), TAGGED, Limits(), tagged=True)
    whole = TAGGED.packing.patches
    assert spec.make(Wish("divprune", tokens=whole), TAGGED, Limits(), tagged=True).tokens == whole
