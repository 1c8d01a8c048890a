"""VisPruner against a loop over rounds."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.methods import plain
from tests.methods.images import images
from vtc import VisualTokens, VTCError
from vtc.methods.vispruner import VisPruner


@given(
    tokens=images(),
    retention=st.floats(0.05, 0.9),
    important=st.sampled_from([0.0, 0.5, 0.75, 1.0]),
    step=st.sampled_from([1, 8, 30]),
)
def test_rounds_drop_what_is_likest_to_the_others(
    tokens: VisualTokens, retention: float, important: float, step: int
) -> None:
    method = VisPruner(retention, important=important, step=step)
    want = set()
    for tile, patches, share in plain.tiles(tokens, method.budget(tokens)):
        unit = torch.nn.functional.normalize(tokens.features[tile].double(), dim=-1)
        order = plain.best(tokens.signals["attention"][tile], patches, len(patches))
        front = math.floor(share * important + 1e-9)
        kept, left, goal = order[:front], order[front:], share - front
        while len(left) > goal > 0:
            a, b = left[0::2], left[1::2]
            like = {i: max(float(unit[i] @ unit[j]) for j in b) for i in a}
            a = sorted(a, key=lambda i: -like[i])
            left = a[min(step, len(left) - goal) :] + b
        want |= {(tile, patch) for patch in kept + left[:goal]}
    assert plain.kept(method.compress(tokens)) == want


def test_what_is_refused() -> None:
    with pytest.raises(VTCError, match="step: got 0, allowed are whole numbers >= 1"):
        VisPruner(step=0)
    with pytest.raises(VTCError, match="important: got 2, allowed are numbers from 0 to 1"):
        VisPruner(important=2)
