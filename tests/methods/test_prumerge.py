"""PruMerge against a loop over tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.methods import plain
from tests.methods.images import image, images
from vtc import VisualTokens, VTCError
from vtc.methods.prumerge import PruMerge


def scores(tokens: VisualTokens) -> torch.Tensor:
    if "cls_query" not in tokens.signals:
        return tokens.signals["attention_received"].double()
    query, keys = (tokens.signals[name].double() for name in ("cls_query", "keys"))
    return torch.softmax((keys @ query[..., None]).squeeze(-1) / query.shape[1] ** 0.5, 1)[:, 1:]


@given(
    tokens=images(),
    retention=st.floats(0.05, 0.9) | st.none(),
    plus=st.booleans(),
    grid=st.sampled_from(["even", "official"]),
    cluster=st.sampled_from([1, 4, 32]),
)
def test_outliers_their_neighbours_and_the_rest(
    tokens: VisualTokens, retention: float | None, plus: bool, grid: str, cluster: int
) -> None:
    method = PruMerge(retention, plus=plus, grid=grid, cluster=cluster)
    size = tokens.features.shape[1]
    attention, keys = scores(tokens), tokens.signals["keys"][:, -size:].double()
    want: dict[tuple[int, int], dict[int, float]] = {}
    for tile, patches, share in plain.tiles(tokens, method.budget(tokens)):
        a = attention[tile]
        if not patches:
            continue
        if retention is None:
            low, high = np.percentile(a[patches].numpy(), [25, 75])
            outliers = sum(float(a[i]) > high + 1.5 * (high - low) for i in patches)
            wanted = 3 * outliers
        else:
            main = share - (share > 1)
            outliers = -(-main // 4) if plus else main
            wanted = main - outliers
        kept = plain.best(a, patches, outliers)
        rest = [patch for patch in patches if patch not in kept]
        if plus and grid == "official" and retention is None:
            step = int(int(1 / (outliers / size)) / 3) if outliers else size
            kept += [i for i in range(0, size - 1, max(step, 1)) if i in rest] if outliers else []
        elif plus:
            wanted, half = min(wanted, len(rest)), len(rest) // 2
            marks = [(i * wanted + half) // max(len(rest), 1) for i in range(len(rest) + 1)]
            kept += [patch for i, patch in enumerate(rest) if marks[i + 1] > marks[i]]
        for centre in kept:
            like = torch.cosine_similarity(keys[tile, centre], keys[tile], dim=-1)
            near = plain.best(like, [i for i in patches if i != centre], cluster)
            want[tile, centre] = {centre: 1.0, **{i: float(a[i]) for i in near}}
        dropped = [patch for patch in patches if patch not in kept]
        if dropped and (share > 1 or retention is None):
            best = plain.best(a, dropped, 1)[0]
            want[tile, best] = {i: float(a[i]) for i in dropped}
    found = plain.sources(method.compress(tokens), size)
    assert {key: found[key].keys() for key in found} == {key: want[key].keys() for key in want}
    for key in want:
        assert found[key] == pytest.approx(want[key], rel=1e-4)


def test_the_official_order_of_a_single_tile() -> None:
    tokens = image()
    out = PruMerge(0.3, order="official").compress(tokens)
    front = scores(tokens)[0, out.patch[out.is_patch][:-1]]
    assert bool((front.diff() <= 0).all())
    assert plain.kept(out) == plain.kept(PruMerge(0.3).compress(tokens))


def test_what_is_asked_for_and_refused() -> None:
    assert [r.layer for r in PruMerge().requests().values()] == [-1, -1]
    assert set(PruMerge().requests(has_cls=False)) == {"attention_received", "keys"}
    assert PruMerge().counts_itself and not PruMerge(0.3).counts_itself
    with pytest.raises(VTCError, match="grid: got 'odd', allowed are even, official"):
        PruMerge(grid="odd")
