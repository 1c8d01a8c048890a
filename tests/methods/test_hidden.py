"""Tokens that the prompt's mask hides, other ones in every image of a batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.methods.images import METHODS, image, make
from tests.methods.test_batches import same
from vtc.registry import method_class

#: how some methods run that have two ways
WAYS = {
    "visionzip": {"order": "official"},
    "prumerge": {"order": "official", "plus": True},
    "tome": {"variant": "tomesd"},
    "pixelprune": {"tau": 0.4},
}
CASES = [(name, {}) for name in METHODS if not method_class(name).projects] + [*WAYS.items()]


@pytest.mark.parametrize("name, options", CASES, ids=[f"{n}-{len(o)}" for n, o in CASES])
@settings(max_examples=8, deadline=None)
@given(
    hidden=st.lists(st.sets(st.integers(0, 63), max_size=60), min_size=2, max_size=4),
    budget=st.sampled_from([{"retention": 0.3}, {"retention": 0.9}, {"tokens": 7}, {}]),
)
def test_each_image_is_as_alone_and_keeps_none_of_them(name, options, hidden, budget):
    batch = []
    for seed, places in enumerate(hidden):
        whole = image((8, 8), seed=seed)
        packing = replace(whole.packing, hidden=tuple(sorted(places)))
        batch.append(replace(whole, packing=packing))
    method = make(name, **budget, **options)
    for tokens, places, out in zip(batch, hidden, method.compress_all(batch), strict=True):
        same(out, method.compress(tokens))
        kept = out.patch[out.is_patch]
        assert not places & set(kept.tolist())
        if out.merged is not None:
            assert not places & set(out.merged.source.tolist())


PLAIN = ("fastervlm", "visionzip", "vispruner", "hiprune", "prumerge", "vscan", "holov")
ODD = [(name, {}) for name in (*PLAIN, "tome", "pixelprune", "prunesid")] + [*WAYS.items()]


@pytest.mark.parametrize("name, options", ODD, ids=[f"{n}-{len(o)}" for n, o in ODD])
def test_what_stands_in_padding_changes_nothing(name, options):
    tokens = image(crops=(2, 2), size=(500, 200))
    padding = ~tokens.valid

    def spoilt(values):
        if values.shape[:2] != padding.shape:
            return values
        return values.masked_fill(
            padding.view(*padding.shape, *[1] * (values.dim() - 2)), torch.nan
        )

    signals = {key: spoilt(value) for key, value in tokens.signals.items()}
    other = replace(tokens, features=spoilt(tokens.features), signals=signals)
    method = make(name, retention=0.3, **options)
    assert not method.compress(other).features.isnan().any()
    same(method.compress(other), method.compress(tokens))
