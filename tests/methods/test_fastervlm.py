"""FasterVLM against a loop over tiles."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.methods import plain
from tests.methods.images import image, images
from vtc import VisualTokens, VTCError
from vtc.methods.fastervlm import FasterVLM


@given(tokens=images(), retention=st.floats(0.05, 0.9))
def test_the_most_attended_of_every_tile(tokens: VisualTokens, retention: float) -> None:
    method = FasterVLM(retention)
    want = {
        (tile, patch)
        for tile, patches, share in plain.tiles(tokens, method.budget(tokens))
        for patch in plain.best(tokens.signals["attention"][tile], patches, share)
    }
    assert plain.kept(method.compress(tokens)) == want


def test_the_best_of_the_whole_image() -> None:
    tokens = image(crops=(2, 2), size=(500, 300))
    rows = tokens.signals["attention"].masked_fill(~tokens.valid, -1).flatten()
    want = {(i // 64, i % 64) for i in rows.topk(30).indices.tolist()}
    assert plain.kept(FasterVLM(tokens=30, scope="image").compress(tokens)) == want


def test_what_is_asked_for_and_refused() -> None:
    (cls,) = FasterVLM().requests().values()
    (received,) = FasterVLM(layer=-1).requests(has_cls=False).values()
    assert (cls.kind, cls.layer) == ("cls_attention", "read")
    assert (received.kind, received.layer) == ("attention_received", -1)
    with pytest.raises(VTCError, match="scope: got 'crop', allowed are tile, image"):
        FasterVLM(scope="crop")
    with pytest.raises(VTCError, match="layer: got 'last', allowed are"):
        FasterVLM(layer="last")
