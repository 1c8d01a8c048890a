"""The loaders of the hub datasets on small files of the same form."""

import functools
import hashlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from tests.eval.suites.hub import HUB, Table, picture
from vtc.errors import VTCError
from vtc.eval.accuracy.runner import _open
from vtc.eval.common.records import Answer
from vtc.eval.suites import create_suite, list_suites

WORD = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
RED = "What color is it?"

# prompt, answers, kind and cluster of the first question
FIRST = {
    "vqav2": ("What color is the car?" + WORD, "Dark red.", "other", "42"),
    "gqa": ("What is on the table?" + WORD, "bottle", "query", "n1"),
    "vizwiz": (
        "What color is it?\nWhen the provided information is insufficient, respond with "
        f"'Unanswerable'.{WORD}",
        "Dark red.",
        "",
        "",
    ),
    "scienceqa": (
        f"Which is a liquid?\nA. rock\nB. milk\nC. air{LETTER}",
        "B",
        "natural science",
        "",
    ),
    "textvqa": ("What color is it?" + WORD, "Dark red.", "", "0e3d"),
    "pope": (
        "Is there a snowboard in the image?" + WORD,
        "yes",
        "adversarial",
        "COCO_val2014_000000310196",
    ),
    "mme": ("Is it a sign?" + WORD, "yes", "OCR", "OCR/OCR/0000.png"),
    "mmbench": (
        "Which one? There are several options:\nA. left\nB. right\nC. up\nD. down\n" + LETTER,
        "A",
        "object_localization",
        "241",
    ),
    "docvqa": ("What is the date?" + WORD, "May 12", "form", "14465"),
    "chartqa": ("How many?\nAnswer the question with a single word.", "14", "human_test", ""),
    "infovqa": ("What is the date?" + WORD, "May 12", "single span", "https://example.org/a.png"),
    "ocrbench": ("what is written in the image?", "CENTRE", "Regular Text Recognition", ""),
    "ai2d": (f"Which is the root?\nA. a\nB. b\nC. d\nD. c{LETTER}", "C", "", ""),
    "mmstar": (
        "Which one?\nOptions: A: left, B: right, C: up, D: down" + LETTER.rstrip("."),
        "B",
        "instance reasoning",
        "",
    ),
}
# what the first question scores for an answer in other words, and for a wrong one
SAID = {
    "vqav2": ("The dark red", "blue"),
    "gqa": ("Bottle.", "bottles"),
    "vizwiz": ("a dark red", "blue"),
    "scienceqa": ("B. milk", "A"),
    "textvqa": ("dark red!", "blue"),
    "pope": ("Yes, there is.", "No"),
    "mme": ("Yes.", "No"),
    "mmbench": ("(A) left", "B"),
    "docvqa": ("may 12", "12 June"),
    "chartqa": ("14.5", "15"),
    "infovqa": ("MAY 12", "12 June"),
    "ocrbench": ("It says centre", "center"),
    "ai2d": ("C. d", "D"),
    "mmstar": ("The answer is B", "A: left"),
}
named = pytest.mark.parametrize("name", sorted(HUB))


def run(suite, say):
    """What the runner keeps of the answers `say(item)`."""
    answers = []
    for item in suite.items():
        said = say(item)
        score = suite.score(item, said)
        answers.append(
            Answer(
                "", item.id, item.cluster, item.kind, item.answers, said, score, extra=item.extra
            )
        )
    return answers


def test_every_benchmark_is_listed():
    assert set(HUB) <= set(list_suites())


@named
def test_items(hub, name):
    suite = create_suite(name, data=str(hub[name]))
    items = suite.items()
    assert len(items) == len(HUB[name][0].rows)
    assert len({item.id for item in items}) == len(items)
    prompt, answer, kind, cluster = FIRST[name]
    first = items[0]
    assert (first.prompt, first.answers[-1]) == (prompt, answer)
    assert (first.kind, first.cluster) == (kind, cluster)
    (opener,) = first.images
    expected = HUB[name][-1].rows[0]["image"]
    assert opener().convert("RGB").getpixel((0, 0)) == expected.getpixel((0, 0))
    assert suite.items() is items


@named
def test_scores(hub, name):
    suite = create_suite(name, data=str(hub[name]))
    first, (right, wrong) = suite.items()[0], SAID[name]
    assert suite.score(first, right) == 1
    assert suite.score(first, wrong) < 0.7


@named
def test_summary_of_right_and_wrong_answers(hub, name):
    suite = create_suite(name, data=str(hub[name]))
    right = suite.summary(run(suite, lambda item: item.answers[-1]))
    best = {"mme": 400, "ocrbench": 1000}.get(name, 1)
    assert right[suite.metric] == best
    answers = run(suite, lambda item: item.answers[0] if item is suite.items()[0] else "?")
    mean = sum(answer.score for answer in answers) / len(answers)
    assert suite.summary(answers)[suite.mean_metric] == pytest.approx(mean)
    wrong = suite.summary(run(suite, lambda item: "?" if name != "pope" else "no"))
    assert wrong[suite.metric] == (2 / 3 if name == "pope" else 0)


@named
def test_facts_change_with_the_data(hub, name, tmp_path):
    suite = create_suite(name, data=str(hub[name]))
    facts = suite.facts()
    assert facts["count"] == len(suite.items()) and facts["split"] == suite.default_split
    assert str(hub[name]) not in str(facts)
    for table in HUB[name]:
        rows = table.rows[:-1] if table is HUB[name][0] else table.rows
        Table(table.path, table.types, rows).write(tmp_path)
    assert create_suite(name, data=str(tmp_path)).facts()["fingerprint"] != facts["fingerprint"]


@named
def test_a_fingerprint_stays_what_it_is_in_runs_on_record(hub, name):
    """Written out here: another one for the same questions would set all earlier runs apart."""
    suite = create_suite(name, data=str(hub[name]))
    text = "".join(f"({i.id!r}, {i.prompt!r}, {i.answers!r})" for i in suite.items())
    assert suite.facts()["fingerprint"] == hashlib.sha256(text.encode()).hexdigest()


def test_mme_adds_both_parts(hub):
    suite = create_suite("mme", data=str(hub["mme"]))
    # "yes" to everything: half the questions, no image with both
    figures = suite.summary(run(suite, lambda item: "yes"))
    assert figures == {
        "score": 100,
        "perception": 50,
        "cognition": 50,
        "score/OCR": 50,
        "score/code_reasoning": 50,
        "accuracy": 0.5,
    }


def test_mmbench_wants_every_turn(hub):
    suite = create_suite("mmbench", data=str(hub["mmbench"]))
    first = suite.items()[0]

    def say(item):
        return "B" if item is first else item.answers[0]

    figures = suite.summary(run(suite, say))
    assert figures == {"accuracy": 1 / 2, "vanilla_accuracy": 5 / 6}
    assert suite.items()[-1].prompt.startswith("Two cups. Which one? There are several options:\n")
    assert "C. " not in suite.items()[-1].prompt


def test_pope_by_category(hub):
    suite = create_suite("pope", data=str(hub["pope"]))
    assert [item.id for item in suite.items()] == ["adversarial-1", "popular-1", "popular-1#2"]
    figures = suite.summary(run(suite, lambda item: "Yes"))
    assert (figures["accuracy"], figures["recall"], figures["yes_ratio"]) == (1 / 3, 1, 1)
    assert (figures["accuracy/popular"], figures["f1/adversarial"]) == (0, 1)


def test_hint_of_scienceqa(hub):
    second = create_suite("scienceqa", data=str(hub["scienceqa"])).items()[1]
    assert second.prompt.startswith("Context: Look at the cup.\nWhich is a liquid?\nA. rock\n")


def test_formulas_of_ocrbench(hub):
    suite = create_suite("ocrbench", data=str(hub["ocrbench"]))
    assert suite.score(suite.items()[1], "y=x^{2}") == 1
    assert suite.score(suite.items()[1], "y=X^{2}") == 0


def test_images_of_gqa_are_shared_and_a_missing_one_costs_its_questions(hub):
    one, two, three = create_suite("gqa", data=str(hub["gqa"])).items()
    assert one.images == two.images
    with pytest.raises(VTCError, match="no 'n2'"):
        three.images[0]()


# -- files -------------------------------------------------------------------------------------

CHART = HUB["chartqa"][0]


def test_a_single_file_needs_no_name(hub, tmp_path):
    file = CHART.write(tmp_path).rename(tmp_path / "mine.parquet")
    assert len(create_suite("chartqa", data=str(file)).items()) == 2
    assert len(create_suite("chartqa", data=str(tmp_path), split="other").items()) == 2


def test_only_the_files_of_the_split_and_the_configuration(hub, tmp_path):
    table = HUB["docvqa"][0]
    Table("DocVQA/test-00000-of-00001.parquet", table.types, table.rows * 2).write(tmp_path)
    Table("Other/validation-00000-of-00001.parquet", table.types, table.rows * 3).write(tmp_path)
    table.write(tmp_path)
    assert len(create_suite("docvqa", data=str(tmp_path)).items()) == 2
    assert len(create_suite("docvqa", data=str(tmp_path), split="test").items()) == 4
    with pytest.raises(VTCError, match="no train-.*; there is DocVQA/test-00000-of"):
        create_suite("docvqa", data=str(tmp_path), split="train").items()


def test_missing_columns_are_named(hub, tmp_path):
    types = {name: kind for name, kind in CHART.types.items() if name not in ("type", "image")}
    file = Table("chart.parquet", types, CHART.rows).write(tmp_path)
    with pytest.raises(
        VTCError, match=r"lacks the column\(s\) type, image of 'chartqa'; it has question, answer"
    ):
        create_suite("chartqa", data=str(file)).items()


@pytest.mark.parametrize("data", ["/nowhere/at/all", "nothing", "./a/b"])
def test_no_such_data(hub, data):
    with pytest.raises(VTCError, match="no file, folder or hub dataset"):
        create_suite("chartqa", data=data).items()


def test_hub_data_that_cannot_be_had_is_one_line(hub):
    with pytest.raises(VTCError, match="cannot read 'nobody/nothing'") as raised:
        create_suite("chartqa", data="nobody/nothing").items()
    assert "\n" not in str(raised.value)


def test_a_file_that_is_no_table(hub, tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"not a table")
    with pytest.raises(VTCError, match="cannot read"):
        create_suite("chartqa", data=str(tmp_path / "bad.parquet")).items()


def test_answers_that_are_missing(hub, tmp_path):
    """Test splits have none: the runner marks such rows."""
    file = Table("a.parquet", CHART.types, [{**CHART.rows[0], "answer": None}]).write(tmp_path)
    assert create_suite("chartqa", data=str(file)).items()[0].answers == ()


def test_images_by_path_bytes_and_a_corrupt_one(hub, tmp_path):
    picture(200).save(tmp_path / "a.png")
    types = {**CHART.types, "image": "string"}
    rows = [{**CHART.rows[0], "image": "a.png"}, {**CHART.rows[0], "image": None}]
    file = Table("paths.parquet", types, rows).write(tmp_path)
    first, second = create_suite("chartqa", data=str(file)).items()
    assert first.images[0]().getpixel((0, 0)) == (200, 0, 0)
    with pytest.raises(VTCError, match="row 1 has no image"):
        second.images[0]()
    types = {**CHART.types, "image": {"bytes": "binary", "path": "string"}}
    good = (tmp_path / "a.png").read_bytes()
    rows = [{**CHART.rows[0], "image": {"bytes": data, "path": None}} for data in (good, b"torn")]
    file = Table("bytes.parquet", types, rows).write(tmp_path)
    first, second = create_suite("chartqa", data=str(file)).items()
    assert first.images[0]().getpixel((0, 0)) == (200, 0, 0)
    with pytest.raises(UnidentifiedImageError):
        second.images[0]()


def test_images_of_16_bits_are_scaled(hub, tmp_path):
    """Read by the suite, and by the runner from whatever a suite opens."""
    Image.fromarray(np.full((4, 6), 30_000, np.uint16)).save(tmp_path / "a.png")
    rows = [{**CHART.rows[0], "image": "a.png"}]
    file = Table("a.parquet", {**CHART.types, "image": "string"}, rows).write(tmp_path)
    (item,) = create_suite("chartqa", data=str(file)).items()
    assert item.images[0]().getpixel((0, 0)) == (117, 117, 117)  # 30000 / 65535 of 255
    item = replace(item, images=(functools.partial(Image.open, tmp_path / "a.png"),))
    assert _open([item])[item.id].images[0].getpixel((0, 0)) == (117, 117, 117)


@pytest.mark.parametrize("kind", ["string", "binary"])
def test_images_are_turned_upright(hub, tmp_path, kind):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the right of the picture is its lower end
    picture(200).save(tmp_path / "a.jpg", exif=exif)
    value = "a.jpg" if kind == "string" else (tmp_path / "a.jpg").read_bytes()
    rows = [{**CHART.rows[0], "image": value}]
    file = Table("a.parquet", {**CHART.types, "image": kind}, rows).write(tmp_path)
    (item,) = create_suite("chartqa", data=str(file)).items()
    assert item.images[0]().size == (4, 6)


# -- odd rows ----------------------------------------------------------------------------------


def odd(folder, name, **values):
    """Items of a suite whose second row has other values."""
    table = HUB[name][0]
    types = {**table.types, **{n: kind for n, (kind, _) in values.items()}}
    changed = {n: value for n, (_, value) in values.items()}
    first = {n: type(changed[n])(table.rows[0][n]) if n in changed and changed[n] is not None
             else value for n, value in table.rows[0].items()}  # fmt: skip
    file = Table("odd.parquet", types, [first, {**table.rows[0], **changed}]).write(folder)
    return create_suite(name, data=str(file)).items()


@pytest.mark.parametrize(
    "name, column, kind, value, reason",
    [
        ("ai2d", "answer", "string", "B", "ValueError: invalid literal"),
        ("ai2d", "answer", "string", "7", "answer: got '7', the options are 0 to 3"),
        ("scienceqa", "answer", "int64", -1, "answer: got -1, the options are 0 to 2"),
        ("textvqa", "question", "string", None, "AttributeError"),
        ("chartqa", "question", "string", None, "TypeError"),
        ("mmbench", "question", "string", None, "there is no question"),
        ("mmbench", "index", "string", "first", "ValueError"),
    ],
)
def test_an_odd_row_costs_no_other(hub, tmp_path, name, column, kind, value, reason):
    good, bad = odd(tmp_path, name, **{column: (kind, value)})
    assert good.answers and not good.error
    assert bad.error.startswith("row 1: ") and reason in bad.error


def test_answers_of_vqav2_without_their_people(hub, tmp_path):
    table = HUB["vqav2"][0]
    rows = [{**table.rows[0], "answers": ["red"]}]
    file = Table("a.parquet", {**table.types, "answers": ["string"]}, rows).write(tmp_path)
    (item,) = create_suite("vqav2", data=str(file)).items()
    assert item.error.startswith("row 0: TypeError")


def test_answers_become_text(hub, tmp_path):
    assert odd(tmp_path, "chartqa", answer=("int64", 0))[1].answers == ("0",)
    assert odd(tmp_path, "docvqa", answers=(["string"], [None, "a"]))[1].answers == ("a",)
    first, second = odd(tmp_path, "mmbench", index=("string", "1000241"))
    assert first.cluster == second.cluster == "241"


def test_a_category_that_mme_does_not_have_is_told_before_the_run(hub, tmp_path):
    with pytest.raises(VTCError, match="category: got 'Existence'"):
        odd(tmp_path, "mme", category=("string", "Existence"))


@pytest.mark.parametrize("name, whole", [("mmbench", 4), ("mme", 2)])
def test_a_limit_cuts_no_cluster(hub, name, whole):
    suite = create_suite(name, data=str(hub[name]))
    for limit in (1, whole, whole + 1):
        assert len(suite.first(limit)) == whole
        assert len({item.cluster for item in suite.first(limit)}) == 1
    assert suite.first(None) == suite.items()
    assert len(create_suite("pope", data=str(hub["pope"])).first(2)) == 2
