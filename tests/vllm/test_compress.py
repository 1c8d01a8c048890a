"""What becomes of the rows of images, whatever a method does; no vLLM is needed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from vtc import VTCError
from vtc.packing import Packing
from vtc.plugins.model.units import Unit, uncut
from vtc.plugins.vllm.capture import Record
from vtc.plugins.vllm.compress import Images, View, compress, wanted
from vtc.plugins.vllm.families import Tower
from vtc.plugins.vllm.settings import Limits, Wish
from vtc.plugins.vllm.spec import Spec, make, spaced

WIDTH = 6


def run(specs: list[Spec]) -> tuple[list[torch.Tensor], list[torch.Tensor], list[int]]:
    """Rows of images, what is left of them, and the images that a method failed on."""
    torch.manual_seed(0)
    rows = [torch.randn(spec.full, WIDTH) for spec in specs]
    same = lambda values, *_: values  # noqa: E731
    tower = Tower(has_cls=True, depth=2, built=2, read=1, windows=False)
    view = View(SimpleNamespace(), tower, WIDTH, lambda: None, same, same, same)
    tiles = [spec.packing.tiles for spec in specs]
    failed: list[int] = []
    images = Images(specs, rows, tiles, lambda index: rows[index], Record())
    kept = compress(view, images, failed.append)
    return rows, [each.rows for each in kept], failed


def test_rows_are_those_that_the_method_keeps() -> None:
    specs = [make(Wish("divprune", tokens=n), Unit(Packing((4, 4))), Limits()) for n in (5, 9)]
    rows, kept, failed = run(specs)
    assert not failed and [len(each) for each in kept] == [5, 9]
    for whole, left in zip(rows, kept, strict=True):
        assert all((row == whole).all(1).any() for row in left)


def test_an_image_that_a_method_fails_on_costs_no_other(caplog: pytest.LogCaptureFixture) -> None:
    unit = Unit(Packing((4, 4)))
    # nothing was seen of the tower, so that what reads CLS fails on every image
    wishes = [Wish("fastervlm", tokens=4), Wish("uniform", tokens=4), Wish("fastervlm", tokens=7)]
    specs = [make(wish, unit, Limits()) for wish in wishes]
    rows, kept, failed = run(specs)
    assert failed == [0, 2] and caplog.text.count("'fastervlm' failed on an image") == 2
    for index in failed:
        assert torch.equal(kept[index], rows[index][spaced(16, specs[index])])
    (alone,) = run([specs[1]])[1]
    assert len(alone) == len(kept[1]) == 4


def test_an_image_that_keeps_everything_is_not_touched() -> None:
    """Nor does a method that reads the tower make it be read for such an image."""
    unit, tower = Unit(Packing((4, 4))), Tower(True, depth=2, built=2, read=1, windows=False)
    whole = make(Wish("fastervlm", 1.0), unit, Limits())
    rows, kept, failed = run([whole, whole])  # nothing was seen of the tower
    assert not failed and all(a is b for a, b in zip(rows, kept, strict=True))
    assert wanted([whole], tower) == (set(), False)
    assert wanted([whole, make(Wish("fastervlm", 0.5), unit, Limits())], tower) == ({1}, False)
    rows, kept, failed = run([make(Wish("random", 1.0), unit, Limits())])
    assert not failed and kept[0] is rows[0]
    rows, kept, failed = run([make(Wish("uniform", n), unit, Limits()) for n in (1.0, 0.5)])
    assert not failed and kept[0] is rows[0] and len(kept[1]) == 8


def test_every_tile_keeps_its_share_where_tags_stand_between() -> None:
    unit = Unit(uncut((4, 4), (1, 2), order="thumbnail_last"), fused=True)
    spec = make(Wish("uniform", tokens=10), unit, Limits(), tagged=True)
    (whole,), (left,), failed = run([spec])
    assert not failed and len(left) == spec.length == 10
    places = [int((row == whole).all(1).nonzero()) for row in left]
    assert places == sorted(places)
    shares = [spec.shares[nth] for nth in (1, 2, 0)]
    assert torch.bincount(torch.tensor(places) // 16, minlength=3).tolist() == shares


def test_a_promise_of_another_version_is_kept_with_tokens_at_even_distances(
    caplog: pytest.LogCaptureFixture,
) -> None:
    mine = make(Wish("uniform", tokens=4), Unit(Packing((4, 4))), Limits())
    text = bytes(mine.to_tensor().tolist()).replace(b'"format":1', b'"format":9')
    theirs = Spec.from_tensor(torch.tensor(list(text), dtype=torch.uint8))
    rows, kept, failed = run([theirs, mine])
    assert failed == [0] and "the same vtc must be installed on every node" in caplog.text
    assert torch.equal(kept[0], rows[0][spaced(16, theirs)]) and len(kept[0]) == 4
    with pytest.raises(VTCError):  # of such a call the tower is run and not read
        wanted([theirs, mine], Tower(has_cls=True, depth=2, built=2, read=1, windows=False))
