"""VisionZip against a loop over patches."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.methods import plain
from tests.methods.images import image, images
from vtc import VisualTokens, VTCError
from vtc.methods.visionzip import VisionZip


@given(
    tokens=images(),
    retention=st.floats(0.05, 0.9),
    contextual=st.sampled_from([0.0, 5 / 32, 0.5, 1.0, 3]),
    merge=st.sampled_from(["official", "mean"]),
)
def test_the_rest_goes_to_the_likest_key(
    tokens: VisualTokens, retention: float, contextual: float, merge: str
) -> None:
    method = VisionZip(retention, contextual=contextual, merge=merge)
    keys = tokens.signals["key_mean"][:, -tokens.features.shape[1] :].double()
    want: dict[tuple[int, int], dict[int, float]] = {}
    for tile, patches, share in plain.tiles(tokens, method.budget(tokens)):
        number = contextual if contextual == 3 else math.floor(contextual * share + 1e-9)
        number = min(int(number), share)
        kept = plain.best(tokens.signals["attention"][tile], patches, share - number)
        want |= {(tile, patch): {patch: 1.0} for patch in kept}
        rest = [patch for patch in patches if patch not in kept]
        targets = rest[:: max(1, len(rest) // max(number, 1))][:number]
        members: dict[int, list[int]] = {target: [] for target in targets}
        for patch in rest:
            if targets and patch not in targets:
                like = [
                    float(torch.cosine_similarity(keys[tile, patch], keys[tile, t], dim=0))
                    for t in targets
                ]
                members[targets[like.index(max(like))]].append(patch)
        for target, others in members.items():
            own, other = (1.0, 1 / max(len(others), 1))
            if merge == "mean":
                own = other = 1 / (1 + len(others))
            want[tile, target] = {target: own, **{patch: other for patch in others}}
    found = plain.sources(method.compress(tokens), keys.shape[1])
    assert {key: found[key].keys() for key in found} == {key: want[key].keys() for key in want}
    for key in want:
        assert found[key] == pytest.approx(want[key])


def test_the_official_order_of_a_single_tile() -> None:
    tokens = image()
    usual, other = VisionZip(0.3), VisionZip(0.3, order="official")
    a, b = usual.compress(tokens), other.compress(tokens)
    merged = usual.merged(usual.budget(tokens))
    assert plain.kept(a) == plain.kept(b) and merged > 0
    front, behind = b.anchor[b.is_patch].split([len(b) - 1 - merged, merged])
    assert bool((front.diff() > 0).all()) and bool((behind.diff() > 0).all())
    assert bool((b.weight[: len(front)] == 1).all()) and not bool(b.is_patch[-1])
    crops = image(crops=(2, 2))
    assert torch.equal(usual.compress(crops).anchor, other.compress(crops).anchor)


def test_what_is_refused() -> None:
    with pytest.raises(VTCError, match="contextual: got 1.5, allowed are numbers from 0 to 1"):
        VisionZip(contextual=1.5)
    with pytest.raises(VTCError, match="merge: got 'sum', allowed are official, mean"):
        VisionZip(merge="sum")
