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
from vtc.eval.reference_photo.sources import ALIKE, GARMENTS, KINDS, SPLITS, find


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
    for number in range(900):
        for question in make_scene(sources, "train", 0, number, 3).questions:
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
    for seed in range(8):  # the number before all: scenes of many alike have few other questions
        assert ask(things, None, None, "fish", np.random.default_rng(seed), 1)[0].type == "count"


def test_garments_in_one_picture_are_never_alike_and_are_asked_for_in_english():
    assert sorted(sum(ALIKE, ())) == sorted(GARMENTS.values())
    things = [Thing("shoes", None, "top left"), Thing("dress", None, "top right")]
    absent = set()
    for seed in range(60):
        asked = ask(things, None, None, "dress", np.random.default_rng(seed), 99)
        said = {(q.text, q.answer) for q in asked}
        assert ("Where are the shoes?", "top left") in said
        assert ("Where is the dress?", "top right") in said
        assert ("How many dresses are there?", "1") in said
        exist = {text: answer for text, answer in said if "there " in text and "many" not in text}
        assert sorted(exist.values()) == ["no", "yes"]
        absent |= {text for text, answer in exist.items() if answer == "no"}
        assert {text for text, answer in exist.items() if answer == "yes"} <= {
            "Are there shoes?",
            "Is there a dress?",
        }
    # a skirt is like a dress
    assert absent == {
        "Is there a coat?", "Is there a shirt?", "Is there a sweater?", "Is there a t-shirt?",
        "Is there a hat?", "Are there pants?", "Are there shorts?",
    }  # fmt: skip


def test_words_say_what_is_in_a_scene(folders):
    sources = find(*folders, "train")
    found = Counter()
    for number in range(200):
        scene = make_scene(sources, "train", 0, number, 99)
        found[scene.kind, scene.colors, scene.garments] += 1
        asked = {q.type: q.answer for q in scene.questions if q.type in ("garment", "reading")}
        named = {q.answer for q in scene.questions if q.type in ("naming", "color", "garment")}
        read = asked.get("reading", "")
        assert set(scene.words) >= named | set(read if read.isdigit() else [read] if read else [])
        if scene.kind == "photographs":
            groups = [group for group in ALIKE if set(scene.words) & set(group)]
            assert len(groups) == len(scene.words)  # at most one kind of each group
        things = [q for q in scene.questions if q.type == "naming"]
        dyes = [q for q in scene.questions if q.type == "color"]
        if len({q.answer for q in things}) == len(things):  # else colours are not asked for
            assert scene.colors == (scene.kind != "garment" and len(dyes) == len(things))
    assert {key[0] for key in found} == {"garment", "things", "photographs", "sign"}
    for (kind, colors, garments), _ in found.items():
        assert garments or kind in ("things", "sign")  # a garment may lie behind those
        assert not colors or kind in ("things", "sign")


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
