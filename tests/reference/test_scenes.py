"""The generator: same seeds, same scene; splits apart; answers follow from the objects."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from vtc.eval.reference import Scene, is_correct, scenes
from vtc.eval.reference.labels import DENSE, IGNORE, label
from vtc.eval.reference.questions import TYPES, quadrant
from vtc.eval.reference.scene import KINDS
from vtc.eval.reference.tiles import TILE, select_grid


def digest(scene: Scene) -> str:
    return hashlib.sha256(np.asarray(scene.image).tobytes()).hexdigest()


@pytest.fixture(scope="module")
def sample() -> list[Scene]:
    return list(scenes("val", 60))


def test_same_seed_same_scene(sample):
    again = list(scenes("val", 60))
    assert [digest(a) for a in sample] == [digest(b) for b in again]
    assert [a.questions for a in sample] == [b.questions for b in again]


def test_splits_and_seeds_differ(sample):
    seen = {digest(scene) for scene in sample}
    for split, seed in (("train", 0), ("test", 0), ("val", 1)):
        assert not seen & {digest(scene) for scene in scenes(split, 60, seed)}


def test_canvas_is_the_one_the_scene_was_drawn_on(sample):
    for scene in sample:
        width, height = scene.image.size
        assert select_grid(height, width) == scene.grid
        assert height == scene.grid[0] * TILE or width == scene.grid[1] * TILE
    assert any(s.image.size != (s.grid[1] * TILE, s.grid[0] * TILE) for s in sample)


def test_objects_lie_in_one_crop_and_do_not_overlap(sample):
    for scene in sample:
        width, height = scene.image.size
        left = (scene.grid[1] * TILE - width) // 2
        top = (scene.grid[0] * TILE - height) // 2
        for i, item in enumerate(scene.objects):
            x0, y0, x1, y1 = item.box
            assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
            assert (x0 + left) // TILE == (x1 - 1 + left) // TILE
            assert (y0 + top) // TILE == (y1 - 1 + top) // TILE
            for other in scene.objects[:i]:
                a, b, c, d = other.box
                assert x1 <= a or c <= x0 or y1 <= b or d <= y0


def test_answers_follow_from_the_objects(sample):
    counts = dict.fromkeys(TYPES, 0)
    for scene in sample:
        shapes = [item for item in scene.objects if item.kind == "shape"]
        for question in scene.questions:
            counts[question.type] += 1
            assert question.group == TYPES[question.type]
            words = question.text.split()
            about = [scene.objects[i] for i in question.about]
            if question.type in ("tag", "value"):
                assert [item.number for item in about] == [question.answer]
            elif question.type == "tagword":
                assert [item.word for item in about] == [question.answer]
            elif question.type == "exist":
                found = any((s.color, s.shape) == (words[3], words[4]) for s in shapes)
                assert question.answer == ("yes" if found else "no")
            elif question.type == "count":
                name = words[2].removesuffix("es") if words[2] == "crosses" else words[2]
                hits = [s for s in shapes if name in (s.color, s.shape, s.shape + "s")]
                assert question.answer == str(len(hits))
            elif question.type == "where":
                color, shape = words[3], words[4]
                hits = [s for s in shapes if (s.color, s.shape) == (color, shape)]
                assert [quadrant(s, scene.image.size) for s in hits] == [question.answer]
            elif question.type == "at":
                place = question.text.split(" at the ")[1].removesuffix(" ?")
                inside = [s for s in shapes if quadrant(s, scene.image.size) == place]
                assert len(inside) == 1
                assert question.answer in (inside[0].color, inside[0].shape)
            else:
                field = question.type
                assert [getattr(item, field) for item in about] == [question.answer]
    assert all(counts.values()), counts


def test_tiles_of_a_scene_differ(sample):
    """Allocation can only matter where some crops are empty and others are full."""
    empty = crowded = 0
    for scene in sample:
        tiles = label(scene).seen[1:]
        empty += any(not seen for seen in tiles)
        crowded += any(not seen for seen in tiles) and max(map(len, tiles)) >= 4
    assert empty >= 20 and crowded >= 12


def test_labels_match_the_objects(sample):
    for scene in sample[:20]:
        tiles = label(scene)
        crops = tiles.owner[1:]
        assert set(np.unique(crops)) - {-1} == set(range(len(scene.objects)))
        for name, classes in DENSE.items():
            values = tiles.dense[name]
            assert ((values == IGNORE) | ((values >= 0) & (values < classes))).all()
        for index, item in enumerate(scene.objects):
            mine = tiles.owner == index
            if item.number is not None:
                mine[0] = False  # small print is not legible in the thumbnail
                assert (tiles.dense["d1"][mine] == int(item.number[0])).all()
                assert (tiles.dense["d2"][mine] == int(item.number[1])).all()


def test_kinds_can_be_chosen():
    assert {scene.kind for scene in scenes("val", 8, kinds=["document"])} == {"document"}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"split": "dev"}, "split"),
        ({"n": -1}, "n must"),
        ({"n": 2.5}, "n must"),
        ({"seed": -1}, "seed"),
        ({"kinds": ["photo"]}, "kinds"),
        ({"kinds": []}, "kinds"),
    ],
)
def test_bad_arguments(arguments, text):
    with pytest.raises(ValueError, match=text):
        scenes(**arguments)


def test_kind_weights_sum_to_one():
    assert sum(KINDS.values()) == pytest.approx(1)


def test_is_correct():
    assert is_correct(" Top  left.", "top left")
    assert not is_correct("3 7", "37")
    assert not is_correct("", "37")
