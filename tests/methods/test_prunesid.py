"""PruneSID against loops over groups."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.methods import plain
from tests.methods.images import image, images
from vtc import VisualTokens
from vtc.batch import ImageBatch
from vtc.functional.prunesid import deal
from vtc.methods.prunesid import PruneSID


def decided(method: PruneSID, tokens: VisualTokens) -> tuple[list[int], torch.Tensor]:
    """Shares of the tiles, and the groups that the method puts their patches in."""
    shares = [share for _, _, share in plain.tiles(tokens, method.budget(tokens))]
    return shares, method.plan(ImageBatch([tokens], [method]), shares)[0]


@given(tokens=images(), retention=st.floats(0.05, 0.9))
def test_groups_are_the_largest_parts_of_principal_directions(
    tokens: VisualTokens, retention: float
) -> None:
    shares, groups = decided(PruneSID(retention), tokens)
    for tile, patches, share in plain.tiles(tokens, sum(shares)):
        if not patches:
            continue
        x = 1 / (1 + np.exp(-tokens.features[tile, patches].double().numpy()))
        x = x - x.mean(1, keepdims=True)
        count = max((share + 1) // 4, 1)
        part = np.abs(np.linalg.svd(x.T, full_matrices=False)[2])[:count]
        first, second = np.sort(part, 0)[-2:] if len(part) > 1 else (part[0] * 0, part[0])
        clear = second - first > 1e-4
        got = groups[tile, patches].numpy()
        assert bool((got[clear] == part.argmax(0)[clear]).all())


@given(tokens=images(), retention=st.floats(0.05, 0.9))
def test_alike_patches_of_a_group_suppress_each_other(
    tokens: VisualTokens, retention: float
) -> None:
    method = PruneSID(retention)
    _, groups = decided(method, tokens)
    want = set()
    for tile, patches, share in plain.tiles(tokens, method.budget(tokens)):
        if not share:
            continue
        unit = torch.nn.functional.normalize(tokens.features[tile].double(), dim=-1)
        pairs = [float(unit[i] @ unit[j]) for i in patches for j in patches if i < j]
        limit = (share + 1) / 32 * (sum(pairs) / max(len(pairs), 1))
        ranked, left, sizes = [], [], []
        for group in range(max((share + 1) // 4, 1)):
            own = [i for i in patches if int(groups[tile, i]) == group]
            order = plain.best(tokens.signals["attention"][tile], own, len(own))
            kept: list[int] = []
            for i in order:
                if all(float(unit[i] @ unit[j]) <= limit for j in kept):
                    kept.append(i)
            ranked.append(kept + [i for i in order if i not in kept])
            left.append(len(kept))
            sizes.append(len(own))
        quota = deal(sizes, left, share + 1)
        assert sum(quota) == share
        for order, count in zip(ranked, quota, strict=True):
            want |= {(tile, i) for i in order[:count]}
    assert plain.kept(method.compress(tokens)) == want


def test_tokens_go_out_to_groups() -> None:
    assert deal([5, 0, 3], [2, 0, 3], 6) == [2, 0, 3]
    assert deal([40, 24], [1, 1], 33) == [16, 16]  # the bound is raised until there is room
    assert deal([1, 1, 1], [1, 1, 1], 4) == [1, 1, 1]


@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=9).filter(any),
    data=st.data(),
)
def test_all_tokens_go_out(sizes: list[int], data: st.DataObject) -> None:
    kept = [data.draw(st.integers(min(1, size), size)) for size in sizes]
    least, most = sum(map(bool, sizes)), sum(sizes)
    tokens = data.draw(st.integers(least, most))
    quota = deal(sizes, kept, tokens + 1)
    assert sum(quota) == tokens
    assert all(min(1, size) <= count <= size for count, size in zip(quota, sizes, strict=True))


def test_a_flat_picture_and_one_that_overflowed() -> None:
    tokens = image((4, 4), newline=False)
    flat = torch.ones_like(tokens.features)
    for features in (flat, flat * torch.nan):
        method, some = PruneSID(tokens=5), replace(tokens, features=features)
        shares, groups = decided(method, some)
        assert method.select(ImageBatch([some], [method])).lengths == [5] == shares
        assert groups.shape == (1, 16)
