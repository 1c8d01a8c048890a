"""ToMe and tomesd against loops over tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.methods import plain
from tests.methods.images import image, images
from vtc import VisualTokens, VTCError
from vtc.functional.bipartite import halving
from vtc.methods.tome import ToMe, cell_of
from vtc.packing import Packing


def unit(value: Tensor) -> Tensor:
    return value / value.norm()


def pairs(metric: Tensor, patches: list[int], target: int) -> list[list[int]]:
    """Members of every token, its main source first."""
    tokens = [([patch], metric[patch].double()) for patch in patches]
    while len(tokens) > target:
        remove = min(len(tokens) // 2, len(tokens) - target)
        a, b = tokens[0::2], tokens[1::2]
        like = [[float(unit(x) @ unit(y)) for _, y in b] for _, x in a]
        order = sorted(range(len(a)), key=lambda i: (-max(like[i]), i))
        merged = [[token] for token in b]
        for i in order[:remove]:
            merged[like[i].index(max(like[i]))].append(a[i])
        tokens = [a[i] for i in order[remove:]]
        for group in merged:
            members = [patch for some, _ in group for patch in some]
            mean = sum(len(some) * x for some, x in group) / len(members)
            tokens.append((members, mean))
    return [members for members, _ in tokens]


@given(
    tokens=images(), retention=st.floats(0.05, 0.9), metric=st.sampled_from(["features", "keys"])
)
def test_rounds_of_pairs(tokens: VisualTokens, retention: float, metric: str) -> None:
    method, size = ToMe(retention, metric=metric), tokens.features.shape[1]
    values = tokens.features if metric == "features" else tokens.signals["key_mean"][:, -size:]
    want = {
        (tile, members[0]): {patch: 1 / len(members) for patch in members}
        for tile, patches, share in plain.tiles(tokens, method.budget(tokens))
        if share
        for members in pairs(values[tile], patches, share)
    }
    found = plain.sources(method.compress(tokens), size)
    assert {key: found[key].keys() for key in found} == {key: want[key].keys() for key in want}
    for key in want:
        assert found[key] == pytest.approx(want[key])


@given(
    tokens=images(),
    retention=st.floats(0.02, 0.9),
    cell=st.sampled_from([(1, 1), (2, 2), (2, 3), (9, 9)]),
)
def test_a_grid_of_destinations(
    tokens: VisualTokens, retention: float, cell: tuple[int, int]
) -> None:
    method, size = ToMe(retention, variant="tomesd", cell=cell), tokens.features.shape[1]
    cols = tokens.patch_grid[1]
    want: dict[tuple[int, int], dict[int, float]] = {}
    for tile, patches, share in plain.tiles(tokens, method.budget(tokens)):
        if not share:
            continue
        rows = sorted({patch // cols for patch in patches})
        lines = sorted({patch % cols for patch in patches})
        down, across = cell_of(len(rows), len(lines), share, cell)
        to = [
            row * cols + col
            for row in rows[::down][: len(rows) // down]
            for col in lines[::across][: len(lines) // across]
        ]
        assert 0 < len(to) <= share
        x = torch.stack([unit(value) for value in tokens.features[tile].double()])
        like = {p: [float(x[p] @ x[t]) for t in to] for p in patches if p not in to}
        order = sorted(like, key=lambda p: (-max(like[p]), p))
        gone = order[: len(patches) - share]
        members = {patch: [patch] for patch in patches if patch not in gone}
        for patch in gone:
            members[to[like[patch].index(max(like[patch]))]].append(patch)
        for patch, some in members.items():
            want[tile, patch] = {source: 1 / len(some) for source in some}
    found = plain.sources(method.compress(tokens), size)
    assert {key: found[key].keys() for key in found} == {key: want[key].keys() for key in want}


def test_cells_that_a_mask_hides() -> None:
    hidden = tuple(range(0, 15))  # of sixteen patches the last is left, and another image's second
    for some in (hidden, tuple(i for i in range(16) if i not in (1, 6, 7))):
        packing = Packing((4, 4), hidden=some)
        tokens = VisualTokens(image((4, 4)).features, packing)
        for count in range(1, 4):
            out = ToMe(tokens=count, variant="tomesd").compress(tokens)
            assert int(out.is_patch.sum()) == min(count, 16 - len(some))


def test_cells_and_rounds() -> None:
    assert cell_of(8, 8, 16, (2, 2)) == (2, 2) and cell_of(8, 8, 15, (2, 2)) == (4, 4)
    assert cell_of(3, 8, 1, (2, 2)) == (3, 8) and cell_of(1, 1, 1, (2, 2)) == (1, 1)
    assert halving(64, 10) == [32, 16, 6] and halving(5, 5) == [] and halving(3, 1) == [1, 1]


def test_what_is_refused() -> None:
    assert ToMe().requests() == {} and set(ToMe(metric="keys").requests()) == {"key_mean"}
    for wrong, match in (
        ((2,), "one number and two"),
        ((2, 0), "got 0, allowed are whole numbers >= 1"),
        ("ab", "got 'ab', allowed are whole numbers >= 1"),
    ):
        with pytest.raises(VTCError, match=f"cell: .*{match}"):
            ToMe(cell=wrong)  # type: ignore[arg-type]
    tokens = image((6, 6))
    same = [ToMe(0.5, variant="tomesd", cell=cell).compress(tokens) for cell in (3, [3, 3])]
    assert torch.equal(same[0].anchor, same[1].anchor)
    with pytest.raises(VTCError, match="variant: got 'pairs', allowed are tome, tomesd"):
        ToMe(variant="pairs")
