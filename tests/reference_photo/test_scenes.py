"""Sources are divided, scenes repeat, and every question has one right answer that its scene shows."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from tests.reference_photo import pictures
from vtc.errors import VTCError
from vtc.eval.reference_photo import is_correct
from vtc.eval.reference_photo.questions import TYPES, Question, answers, ask
from vtc.eval.reference_photo.scene import DYES, SIDE, Thing, dyed, make_scene
from vtc.eval.reference_photo.sources import KINDS, SPLITS, find


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    pytest.importorskip("matplotlib")
    root = tmp_path_factory.mktemp("photo")
    return pictures.debian(root / "debian"), pictures.clothing(root / "clothing")


def test_no_file_is_in_two_splits_and_none_is_lost(folders):
    found = [find(*folders, split) for split in SPLITS]
    for kind in KINDS:
        files = [path for sources in found for path in sources.cutouts[kind]]
        assert len(files) == len(set(files)) == len(pictures.NAMES)
    backgrounds = [path for sources in found for path in sources.backgrounds]
    assert len(backgrounds) == len(set(backgrounds)) == len(pictures.NAMES)
    fonts = [{path.parent.name for path in sources.fonts} for sources in found]
    assert not (fonts[0] & fonts[1] or fonts[0] & fonts[2] or fonts[1] & fonts[2])
    garments = [sources.garments["dress"][0].parts[-3] for sources in found]
    assert garments == ["train", "validation", "test"]


def test_the_same_numbers_make_the_same_scene(folders):
    sources = find(*folders, "val")
    one, two, other = (make_scene(sources, "val", 0, number, 8) for number in (3, 3, 4))
    assert one.image.tobytes() == two.image.tobytes() and one.questions == two.questions
    assert one.image.tobytes() != other.image.tobytes()
    assert one.image.size == (SIDE, SIDE)


def test_answers_are_of_the_closed_set_and_evenly_spread(folders):
    sources = find(*folders, "train")
    found: dict[str, Counter] = {kind: Counter() for kind in TYPES}
    for number in range(300):
        for question in make_scene(sources, "train", 0, number, 8).questions:
            found[question.type][question.answer] += 1
    for kind in TYPES:
        assert set(found[kind]) <= set(answers(kind)), kind
    for kind, most in (("exist", 0.6), ("count", 0.45), ("position", 0.4), ("color", 0.3)):
        assert max(found[kind].values()) / found[kind].total() < most, (kind, found[kind])


def test_questions_follow_from_the_things_by_hand():
    things = [
        Thing("bird", "red", "top left"),
        Thing("fish", None, "top right"),
        Thing("fish", "blue", "bottom left"),
    ]
    asked = ask(things, None, None, "fish", np.random.default_rng(0), 99)
    said = {(q.text, q.answer) for q in asked}
    absent = [q for q in asked if q.answer == "no"]
    assert said - {(q.text, q.answer) for q in absent} - {
        ("Is there a bird?", "yes"),
        ("Is there a fish?", "yes"),
    } == {
        ("What is at the top left?", "bird"),
        ("What is at the top right?", "fish"),
        ("What is at the bottom left?", "fish"),
        ("Where is the bird?", "top left"),  # not of the fish: there are two
        ("What color is the bird?", "red"),
        ("How many fish are there?", "2"),
    }
    assert len(absent) == 1 and not any(word in absent[0].text for word in ("bird", "fish"))
    assert sum(q.answer == "yes" for q in asked) == 1
    first = ask(things, None, None, "fish", np.random.default_rng(0), 5)
    assert len({q.type for q in first}) == 5  # one of each type before a second


def test_a_sign_and_a_garment_are_asked_for():
    rng = np.random.default_rng(0)
    assert ask([], "open", None, None, rng, 3) == [
        Question("reading", "What does the sign say?", "open")
    ]
    assert ask([], None, "coat", None, rng, 3) == [
        Question("garment", "What garment is this?", "coat")
    ]


@pytest.mark.parametrize("dye", DYES)
def test_a_dyed_thing_is_nearest_to_its_colour(dye):
    grey = np.tile(np.linspace(0, 255, 40, dtype=np.uint8)[None, :, None], (20, 1, 4))
    grey[..., 3] = 255
    middle = np.asarray(dyed(Image.fromarray(grey, "RGBA"), dye)).reshape(-1, 4)[:, :3].mean(0)
    gaps = {name: np.abs(np.array(color) - middle).sum() for name, color in DYES.items()}
    assert min(gaps, key=gaps.get) == dye


def test_scoring():
    assert is_correct(" Top left.\n", "top left") and is_correct("3", "3")
    assert not is_correct("top", "top left") and not is_correct("", "3")


def test_what_is_missing_is_named(folders, tmp_path):
    with pytest.raises(VTCError, match="split: got 'all', allowed are train, val, test"):
        find(*folders, "all")
    with pytest.raises(VTCError, match="debian: .*stamps"):
        find(tmp_path, folders[1], "test")
    with pytest.raises(VTCError, match="clothing: .*test"):
        find(folders[0], tmp_path, "test")
