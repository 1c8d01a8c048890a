"""The suite `photo` reads what the data command writes."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.reference_photo import pictures
from vtc.errors import VTCError
from vtc.eval.common.records import Answer
from vtc.eval.reference_photo.data import main
from vtc.eval.suites import create_suite, list_suites


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("matplotlib")
    root = tmp_path_factory.mktemp("suite")
    main(
        f"--debian {pictures.debian(root / 'debian')} --output {root / 'test'} --scenes 6 "
        f"--clothing {pictures.clothing(root / 'clothing')} --questions 2".split()
    )
    return root / "test"


def test_items_are_the_lines_of_the_folder(folder):
    assert "photo" in list_suites()
    suite = create_suite("photo", data=str(folder))
    items = suite.items()
    lines = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    assert [(i.id, i.prompt, i.answers[0], i.kind, i.cluster) for i in items] == [
        (row["id"], row["question"], row["answer"], row["type"], row["picture"]) for row in lines
    ]
    first, second = items[0], next(i for i in items if i.cluster != items[0].cluster)
    assert first.images[0]().size == (224, 224) and first.images != second.images
    same = [i for i in items if i.cluster == first.cluster]
    assert all(i.images[0] is first.images[0] for i in same)  # opened once
    assert suite.score(first, f" {first.answers[0].upper()}.") == 1.0
    assert suite.score(first, "something else") == 0.0


def test_blind_items_have_no_picture_and_other_facts(folder):
    seeing, blind = (create_suite("photo", data=str(folder), blind=b) for b in (False, True))
    assert [i.prompt for i in blind.items()] == [i.prompt for i in seeing.items()]
    assert not any(i.images for i in blind.items())
    assert blind.facts() != seeing.facts()


def test_the_fingerprint_follows_pixels_and_questions(folder, tmp_path):
    facts = create_suite("photo", data=str(folder)).facts()
    assert facts["scenes"] == 6 and facts["split"] == "test" and str(folder) not in str(facts)
    other = shutil.copytree(folder, tmp_path / "other")
    assert create_suite("photo", data=str(other)).facts() == facts
    made = json.loads((other / "facts.json").read_text())
    made["pixels"]["test-0-00000"] = "0" * 16
    (other / "facts.json").write_text(json.dumps(made))
    assert create_suite("photo", data=str(other)).facts()["fingerprint"] != facts["fingerprint"]


def test_the_summary_is_by_type():
    rows = (("color", 1.0), ("color", 0.0), ("count", 1.0), ("reading", 0.0))
    answers = [
        Answer("none", str(n), "", kind, ("x",), "", score) for n, (kind, score) in enumerate(rows)
    ]
    found = create_suite("photo").summary(answers)
    assert found == {"accuracy": 0.5, "color": 0.5, "count": 1.0, "reading": 0.0}


@pytest.mark.parametrize("data", ["", "no/folder"])
def test_a_folder_that_is_none_is_named(data):
    with pytest.raises(VTCError, match=f"data: got '{data}'.*reference_photo.data"):
        create_suite("photo", data=data).items()


def test_a_broken_line_is_named(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "questions.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(VTCError, match="data: line 1 of questions.jsonl: KeyError"):
        create_suite("photo", data=str(other)).items()
