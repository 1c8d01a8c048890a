"""VScan against a loop over patches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.methods import plain
from tests.methods.images import images
from vtc import VisualTokens, VTCError
from vtc.methods.vscan import VScan


@given(
    tokens=images(),
    retention=st.floats(0.05, 0.9),
    window=st.sampled_from([1, 2, 3, 9]),
    quota=st.sampled_from(["most", "each"]),
)
def test_windows_then_the_whole_then_the_rest(
    tokens: VisualTokens, retention: float, window: int, quota: str
) -> None:
    method = VScan(retention, window=window, quota=quota)
    (rows, cols), size = tokens.patch_grid, tokens.features.shape[1]
    down, across = max(rows // window, 1), max(cols // window, 1)

    def where(patch: int) -> tuple[int, int]:
        row, col = divmod(patch, cols)
        return min(row // window, down - 1), min(col // window, across - 1)

    want: dict[tuple[int, int], dict[int, float]] = {}
    for tile, patches, share in plain.tiles(tokens, method.budget(tokens)):
        half, number = share // 2, down * across
        limit = half // number if quota == "each" else -(-half // number)
        half = limit * number if quota == "each" else half
        taken: dict[tuple[int, int], int] = {}
        local: list[int] = []
        for patch in plain.best(tokens.signals["local"][tile], patches, len(patches)):
            if len(local) < half and taken.get(where(patch), 0) < limit:
                local.append(patch)
                taken[where(patch)] = taken.get(where(patch), 0) + 1
        rest = [patch for patch in patches if patch not in local]
        more = plain.best(tokens.signals["attention"][tile], rest, share - len(local))
        kept = sorted(local + more)
        members: dict[int, list[int]] = {patch: [patch] for patch in kept}
        features = tokens.features[tile].double()
        for patch in patches:
            if kept and patch not in kept:
                like = torch.cosine_similarity(features[patch], features[kept], dim=-1).tolist()
                members[kept[like.index(max(like))]].append(patch)
        for patch, some in members.items():
            want[tile, patch] = {source: 1 / len(some) for source in some}
    found = plain.sources(method.compress(tokens), size)
    assert {key: found[key].keys() for key in found} == {key: want[key].keys() for key in want}
    for key in want:
        assert found[key] == pytest.approx(want[key])


def test_what_is_asked_for_and_refused() -> None:
    asked = VScan().requests()
    assert [(r.kind, r.layer) for r in asked.values()] == [
        ("cls_attention", 0.25),
        ("cls_attention", "read"),
    ]
    assert {r.kind for r in VScan().requests(has_cls=False).values()} == {"attention_received"}
    with pytest.raises(VTCError, match="quota: got 'few', allowed are most, each"):
        VScan(quota="few")
