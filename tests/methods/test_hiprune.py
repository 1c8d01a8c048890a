"""HiPrune against a loop over patches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.methods import plain
from tests.methods.images import image, images
from vtc import VisualTokens, VTCError
from vtc.methods.hiprune import HiPrune, beside


def neighbours(place: int, grid: tuple[int, int], official: bool) -> list[int]:
    rows, cols = grid
    if official:
        return [min(max(place + s, 0), rows * cols - 1) for s in (-1, 1, -cols, cols)]
    row, col = divmod(place, cols)
    there = [(row, col - 1), (row, col + 1), (row - 1, col), (row + 1, col)]
    return [y * cols + x for y, x in there if 0 <= y < rows and 0 <= x < cols]


@given(
    tokens=images(),
    retention=st.floats(0.05, 0.9),
    alpha=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    rule=st.sampled_from(["grid", "official"]),
)
def test_anchors_then_neighbours_then_what_receives_most(
    tokens: VisualTokens, retention: float, alpha: float, rule: str
) -> None:
    method = HiPrune(retention, alpha=alpha, neighbours=rule)
    want = set()
    for tile, patches, share in plain.tiles(tokens, method.budget(tokens)):
        anchors = plain.best(tokens.signals["object"][tile], patches, round(share * alpha / 5))
        near = {
            n
            for anchor in anchors
            for n in neighbours(anchor, tokens.patch_grid, rule == "official")
            if n in patches and n not in anchors
        }
        rest = [patch for patch in patches if patch not in near and patch not in anchors]
        rest = plain.best(tokens.signals["deep"][tile], rest, len(rest))
        want |= {(tile, patch) for patch in [*anchors, *sorted(near), *rest][:share]}
    assert plain.kept(method.compress(tokens)) == want


@pytest.mark.parametrize("rule", ["grid", "official"])
@pytest.mark.parametrize("grid", [(1, 1), (1, 6), (4, 3), (5, 5)])
def test_neighbours_of_every_place(grid: tuple[int, int], rule: str) -> None:
    for place in range(grid[0] * grid[1]):
        anchor = torch.zeros(1, grid[0] * grid[1], dtype=torch.bool)
        anchor[0, place] = True
        want = {place, *neighbours(place, grid, rule == "official")}
        assert set(beside(anchor, grid, rule)[0].nonzero().squeeze(1).tolist()) == want


def test_no_cls_is_asked_for() -> None:
    for has_cls in (True, False):
        asked = HiPrune().requests(has_cls)
        assert [(r.kind, r.layer) for r in asked.values()] == [
            ("attention_received", 0.375),
            ("attention_received", "read"),
        ]
    assert len(HiPrune(0.5).compress(image((1, 6), newline=False))) == 3
    with pytest.raises(VTCError, match="neighbours: got 'all', allowed are grid, official"):
        HiPrune(neighbours="all")
