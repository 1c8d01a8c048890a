"""A decision is carried out the same way wherever it is applied, and one follows another."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.methods.images import image, make
from vtc import VTCError
from vtc.batch import ImageBatch
from vtc.packing import Packing
from vtc.selection import Selection
from vtc.tokens import MergeIndex, VisualTokens

SHAPES = [(2, 2), (1, 2), (2, 2)]


def batch_of(method: str, retention: float) -> ImageBatch:
    images = [image(crops=crops, seed=seed) for seed, crops in enumerate(SHAPES)]
    one = make(method, retention=retention)
    return ImageBatch(images, [one] * len(images))


def dense(selection: Selection) -> Tensor:
    """`[M, L]`: what each token that is left is made of, entry by entry."""
    places = [shape.source.tolist() for shape in selection.shapes]
    packed = [(i, s) for i, some in enumerate(places) for s in some]
    first = [0]
    for shape in selection.shapes:
        first.append(first[-1] + shape.valid.numel())
    out = torch.zeros(len(selection.place), len(packed))
    for row, place in enumerate(selection.place.tolist()):
        if selection.merged is None or packed[place][1] < 0:
            out[row, place] = 1
    if selection.merged is not None:
        column = {first[i] + s: p for p, (i, s) in enumerate(packed) if s >= 0}
        index = selection.merged
        for o, s, w in zip(index.output, index.source, index.weight, strict=True):
            out[int(o), column[int(s)]] += float(w)
    return out


def flat(selection: Selection, seed: int = 0) -> list[VisualTokens]:
    """Images of what is left: one tile of a row of tokens, what shorter ones lack hidden."""
    rng = torch.Generator().manual_seed(seed)
    most = max(selection.lengths)
    return [
        VisualTokens(
            torch.randn(1, most, 4, generator=rng),
            Packing((1, most), hidden=tuple(range(n, most))),
            content_seed=seed + i,
        )
        for i, n in enumerate(selection.lengths)
    ]


def packed_values(batch: ImageBatch) -> Tensor:
    """`[L, D]` of the tokens and their newlines, as a model would read them."""
    rows = []
    for tokens in batch.images:
        layout = tokens.layout
        for tile, patch in zip(layout.tile.tolist(), layout.patch.tolist(), strict=True):
            rows.append(tokens.newline if patch < 0 else tokens.features[tile, patch])
    return torch.stack(rows)


@pytest.mark.parametrize("method", ["uniform", "pool", "random", "globalcom2"])
def test_packed_values_become_what_the_tokens_are(method: str) -> None:
    batch = batch_of(method, 0.3)
    selection = batch.methods[0].select(batch)
    values = packed_values(batch)
    tokens = torch.cat([out.features for out in selection.apply(batch)])
    torch.testing.assert_close(selection.combine(values), tokens)
    torch.testing.assert_close(dense(selection) @ values, tokens)
    anchors, start = [], 0
    for shape, out in zip(batch.shapes, selection.apply(batch), strict=True):
        anchors.append(out.anchor + start)
        start += shape.length
    assert torch.equal(selection.take(torch.arange(len(values))), torch.cat(anchors))


@pytest.mark.parametrize("then", ["uniform", "pool", "random"])
@pytest.mark.parametrize("first", ["uniform", "pool", "globalcom2"])
def test_one_after_another(first: str, then: str) -> None:
    """The same as applying the second to what the first has left: the product of two matrices."""
    batch = batch_of(first, 0.5)
    one = batch.methods[0].select(batch)
    method = make(then, retention=0.4)
    # newlines are tokens like others here, so that only what keeps tokens may meet them
    images = flat(one)
    behind = ImageBatch(images, [method] * len(images))
    two = method.select(behind)
    if then == "pool":
        with pytest.raises(VTCError, match="then: got a selection that merges separators"):
            one @ two
        return
    both = one @ two
    assert torch.equal(dense(both), dense(two) @ dense(one))
    assert list(both.lengths) == list(two.lengths)
    values = packed_values(batch)
    torch.testing.assert_close(both.combine(values), two.combine(one.combine(values)))
    outs = both.checked(method).apply(batch)
    torch.testing.assert_close(torch.cat([o.features for o in outs]), both.combine(values))
    assert [int((o.patch < 0).sum()) for o in outs] == list(both.separators)


@pytest.mark.parametrize("first", ["uniform", "pool"])
def test_merging_what_was_merged(first: str) -> None:
    """Without separators; sizes add up, and every source is counted once."""
    images = [image((6, 6), seed=seed) for seed in range(3)]
    images = [VisualTokens(i.features, i.patch_grid) for i in images]
    method, pool = make(first, retention=0.5), make("pool", retention=0.3)
    batch = ImageBatch(images, [method] * 3)
    one = method.select(batch)
    two = pool.select(ImageBatch(flat(one), [pool] * 3))
    both = one @ two
    torch.testing.assert_close(dense(both), dense(two) @ dense(one))
    outs = both.checked(pool).apply(batch)
    for tokens, out in zip(images, outs, strict=True):
        assert out.merged is not None
        seen = 36 if first == "pool" else 18
        assert out.weight.sum() == seen == len(out.merged.source.unique())
        torch.testing.assert_close(out.merged.merge(tokens.features.flatten(0, 1)), out.features)


def test_a_selection_of_other_tokens_is_refused() -> None:
    batch = batch_of("uniform", 0.5)
    one = batch.methods[0].select(batch)
    with pytest.raises(VTCError, match=r"then: got a selection among \[.*\] tokens, here"):
        one @ one


def test_hand_made_selections_are_looked_at() -> None:
    tokens = image((4, 4))
    tokens = VisualTokens(tokens.features, (4, 4))
    method = make("uniform", retention=0.5)
    batch = ImageBatch([tokens], [method])
    good = Selection(batch.shapes, torch.arange(8), [8], [0])
    assert len(good.checked(method).apply(batch)[0]) == 8
    merged = MergeIndex(torch.arange(8), torch.arange(8), torch.ones(8), 8, 16)
    for wrong, message in (
        (replace(good, place=torch.arange(8) + 12), "lengths: got .* other images"),
        (replace(good, place=torch.zeros(8, dtype=torch.long)), "place: got a patch twice"),
        (replace(good, place=torch.arange(8.0)), "place: got torch.float32"),
        (replace(good, lengths=[7]), r"place: got torch.int64 \[8\], expected int64 \[7\]"),
        (replace(good, separators=[1]), "separators: got"),
        (replace(good, lengths=[4, 4]), "lengths: got 2"),
        (replace(good, merged=merged, entries=[7]), "entries: got"),
        (
            replace(good, merged=replace(merged, source=torch.arange(8) + 9), entries=[8]),
            "merged: got a source outside",
        ),
    ):
        with pytest.raises(VTCError, match=message):
            replace(wrong, _looked_at=False).checked(method)


def test_a_budget_is_known_before_anything_is_encoded() -> None:
    """`budget` and `length` of a packing alone are what comes out."""
    for tokens in (image(crops=(2, 2)), image(crops=(1, 3), size=(300, 900)), image((8, 8))):
        for name in ("uniform", "pool", "random"):
            for options in ({"retention": 0.3}, {"tokens": 7}, {"retention": 1.0}):
                method = make(name, **options)
                out = method.compress(tokens)
                assert method.budget(tokens.packing) == out.num_patches
                assert method.length(tokens.packing) == len(out)
        assert make("token_correlation").length(tokens.packing) is None
    flex = make("tokenflex", retention=0.4)
    tokens = image(crops=(2, 2))
    assert flex.length(tokens.packing) == len(flex.compress(tokens))
    assert set(flex.weights()) == {"projector"}


def test_packings_are_values() -> None:
    packing = Packing([4, 4], [2, 2], [100, 90], newline=True)  # type: ignore[arg-type]
    again = Packing.from_dict(packing.to_dict())
    assert again == packing and hash(again) == hash(packing) and again.tiles == 5
    assert again.geometry is packing.geometry
    clip = Packing((2, 3), tiles=4, newline=True, tail=True, hidden=(0, 8))
    assert Packing.from_dict(clip.to_dict()) == clip
    assert clip.length == 4 * 7 + 1 - 2 and clip.patches == 22 and clip.separators == 5
    assert clip.frame(1).hidden == (1,) and clip.frame(1).length == 6
    with pytest.raises(VTCError, match="tile_grid: got .*, which means 5 tiles, but .* 4"):
        Packing((4, 4), (2, 2), tiles=4)
    with pytest.raises(VTCError, match="order: got 'spiral', allowed are canvas"):
        Packing((4, 4), order="spiral")
    with pytest.raises(VTCError, match="unpad: got 'no', allowed are hf"):
        Packing((4, 4), unpad="no")
