"""Files of questions: what is read, what is refused, what stands or falls together."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vtc.errors import VTCError
from vtc.eval.tune.questions import UNKNOWN, ByImage, Questions, together
from vtc.eval.tune.run import check_enough, enough, split


def picture(number: int) -> Image.Image:
    noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(3):
        picture(number).save(tmp_path / f"{number}.png")
    picture(0).save(tmp_path / "copy.png")
    return tmp_path


def read(folder: Path, *rows: Any, **options: Any) -> Questions:
    path = folder / "questions.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return Questions(path, **options)


def test_a_file_of_questions(folder: Path) -> None:
    suite = read(
        folder,
        {"image": "0.png", "question": "what ?", "answer": "a"},
        "",
        {"image": "copy.png", "question": "and ?", "answers": ["b", "c"], "id": "mine"},
        {"images": ["1.png", "2.png"], "question": "both ?", "answer": 3},
    )
    first, second, third = suite.items()
    assert [item.id for item in suite.items()] == ["1", "mine", "3"]
    assert first.cluster == second.cluster != third.cluster, "the same pixels in another file"
    assert third.answers == ("3",) and len(third.images) == 2
    assert third.images[1]().size == (8, 8)
    assert suite.score(second, "C.") == 1 and suite.score(second, "d") == 0
    assert ByImage.of(suite).answered
    text = "".join(f"({i.id!r}, {i.prompt!r}, {i.answers!r}, {i.cluster!r})" for i in suite.items())
    wanted = hashlib.sha256(text.encode()).hexdigest()
    assert suite.facts()["sha256"] == wanted, "earlier runs are set apart"


def test_without_answers_and_from_python() -> None:
    shared = picture(5)
    suite = Questions(
        [{"image": shared, "question": "a ?"}, {"image": shared.copy(), "question": "b ?"}]
    )
    questions = ByImage.of(suite)
    assert not questions.answered and len(questions.items) == 1
    assert {item.answers for item in suite.items()} == {UNKNOWN}


def test_pictures_link_questions() -> None:
    assert together([["a"], ["b"], ["b", "a"], ["c"], ["d", "e"], ["e"]]) == ["b"] * 3 + [
        "c", "d", "d",
    ]  # fmt: skip


def test_an_image_with_many_questions_counts_as_a_typical_one() -> None:
    rows = [
        {"image": picture(number), "question": f"{number} {again} ?"}
        for number, count in enumerate((1, 2, 9))
        for again in range(count)
    ]
    questions = ByImage.of(Questions(rows))
    weights = {len(items): questions.weight(name) for name, items in questions.items.items()}
    assert questions.typical == 2 and weights == {1: 0.5, 2: 1.0, 9: 1.0}


@pytest.mark.parametrize(
    "row, message",
    [
        ("{", "line 1: not JSON"),
        ([1], "expected keys with values"),
        ({"image": "0.png", "question": "  "}, "question is '  '"),
        ({"image": "0.png"}, "question is None"),
        ({"question": "what ?"}, "expected image, or images"),
        ({"images": [], "question": "what ?"}, "expected image, or images"),
        ({"image": "0.png", "images": ["0.png"], "question": "?"}, "expected image, or images"),
        ({"image": "no.png", "question": "what ?"}, "there is no image"),
        ({"image": 3, "question": "what ?"}, "got int as image"),
        ({"image": "0.png", "question": "?", "anwser": "a"}, "did you mean 'answer'"),
        ({"image": "0.png", "question": "?", "answers": "a"}, "expected a list of texts"),
        ({"image": "0.png", "question": "?", "answer": "a", "answers": ["b"]}, "both given"),
    ],
)
def test_lines_that_are_refused(folder: Path, row: Any, message: str) -> None:
    with pytest.raises(VTCError, match=message) as error:
        read(folder, row).items()
    assert "line 1" in str(error.value)


def test_files_that_are_refused(folder: Path) -> None:
    one = {"image": "0.png", "question": "what ?"}
    with pytest.raises(VTCError, match="1 of 2 questions have answers, allowed are all or none"):
        read(folder, one, {**one, "answer": "a"}).items()
    with pytest.raises(VTCError, match="the id 'x' is that of another question"):
        read(folder, {**one, "id": "x"}, {**one, "id": "x"}).items()
    with pytest.raises(VTCError, match="has no question"):
        read(folder, "").items()
    with pytest.raises(VTCError, match="cannot read"):
        Questions(folder / "none.jsonl").items()
    with pytest.raises(VTCError, match="metric: got 'anl', allowed are .*did you mean 'anls'"):
        read(folder, one, metric="anl")
    with pytest.raises(VTCError, match="max_new_tokens: got 0"):
        read(folder, one, max_new_tokens=0)


def test_the_line_that_is_named_is_that_of_the_file(folder: Path) -> None:
    one = {"image": "0.png", "question": "what ?"}
    with pytest.raises(VTCError, match="line 4: question is None"):
        read(folder, one, "", "", {"image": "0.png"}).items()


def test_what_editors_and_other_languages_write(folder: Path) -> None:
    """A byte order mark, two characters at the end of a line, a line separator inside a text."""
    row = json.dumps({"image": "0.png", "question": "one \u2028 two"}, ensure_ascii=False)
    path = folder / "questions.jsonl"
    path.write_bytes(f"\ufeff{row}\r\n{row}\r\n".encode())
    assert [item.prompt for item in Questions(path).items()] == ["one \u2028 two"] * 2


def test_people_who_agree_are_several(folder: Path) -> None:
    one = {"image": "0.png", "question": "?", "answer": "a"}
    with pytest.raises(VTCError, match="line 1: one answer, expected several for metric 'vqa'"):
        read(folder, one, metric="vqa").items()
    four = {"image": "0.png", "question": "?", "answers": ["a"] * 4}
    suite = read(folder, four, metric="vqa")
    assert suite.score(suite.items()[0], "a") == 1.0
    assert len(read(folder, {"image": "0.png", "question": "?"}, metric="vqa").items()) == 1


@pytest.mark.parametrize("data", [None, 3])
def test_data_of_another_kind(data: Any) -> None:
    with pytest.raises(VTCError, match=f"data: got {data}, allowed are"):
        Questions(data).items()


def images(count: int) -> ByImage:
    return ByImage.of(Questions([{"image": picture(i), "question": "?"} for i in range(count)]))


def test_too_few_images_are_refused_with_the_number_that_is_needed() -> None:
    count = enough(0.8)
    check_enough(images(count), 0.8, 0)
    with pytest.raises(
        VTCError, match=f"too few to prove 0.8; give {count} at least, or a target of"
    ):
        check_enough(images(count - 1), 0.8, 0)
    with pytest.raises(VTCError, match="5 images are too few to prove 0.99; give 625 at least"):
        check_enough(images(5), 0.99, 0)


def test_the_split_is_of_images_and_the_same_every_time() -> None:
    found = images(90)
    search, unseen = split(found, 0)
    assert len(search) == 30 and len(unseen) == 60 and not {*search} & {*unseen}
    assert split(found, 0) == (search, unseen) != split(found, 1)
