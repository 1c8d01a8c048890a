"""The report: what it says follows from the answers, and what cannot be compared is refused."""

from __future__ import annotations

import csv
import html.parser
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from tests.eval import synthetic
from vtc.commands.eval import main
from vtc.errors import VTCError
from vtc.eval.common import settings
from vtc.eval.common.settings import Setting
from vtc.eval.common.timing import Ratio
from vtc.eval.report import charts, kept
from vtc.eval.report.results import LINES, analyse, group_key
from vtc.eval.report.runs import collect

FULL = Setting("none")


def rows(*scores, setting=FULL, kind="a", tokens=100):
    """One answer a score, each about an image of its own."""
    return [
        synthetic.Answer(
            setting.key, f"i{n}", f"c{n}", kind, ("x",), "x" if score else "y", score,
            tokens=tokens, tokens_full=100, patches=tokens, patches_full=100,
        )
        for n, score in enumerate(scores)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    synthetic.write_accuracy(folder / "accuracy", images=40)
    synthetic.write_efficiency(folder / "efficiency")
    return folder


@pytest.fixture(scope="module")
def out(runs):
    argv = [str(runs / name) for name in ("accuracy", "efficiency")]
    assert main(["report", *argv, "--output", str(runs / "out"), "--resamples", "500"]) == 0
    return runs / "out"


@pytest.fixture(scope="module")
def crowd_results():
    chosen = settings.plan(synthetic.EVERY, [0.5, 0.25, 0.1], 1, pixels=[0.25])
    return analyse(synthetic.answers(chosen, 6), chosen, 48, resamples=100)


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crowd")
    chosen = settings.plan(synthetic.EVERY, [0.5, 0.25], 1, pixels=[0.25])
    synthetic.write_accuracy(folder / "run", chosen, 6)
    argv = ["report", str(folder / "run"), "--output", str(folder), "--pictures", "0"]
    assert main([*argv, "--resamples", "100"]) == 0
    return folder


# -- figures -----------------------------------------------------------------------------------


def test_figures_of_a_small_run_by_hand():
    half, low = Setting("uniform", 0.5), Setting("random", 0.5)
    again = replace(low, seed=1)
    answers = [
        *rows(1, 1, 1, 0),
        *rows(1, 0, 1, 0, setting=half, tokens=50),
        *rows(1, 1, 0, 0, setting=low, tokens=50),
        *rows(0, 1, 1, 1, setting=again, tokens=48),
    ]
    times = {group_key(half): Ratio(0.6, 0.5, 0.7, 3), group_key(low): Ratio(0.5, 0.5, 0.5, 3)}
    found = analyse(answers, [FULL, half, low, again], 4, times, resamples=200)
    full, random, uniform = found.entries
    assert (full.label, full.accuracy.value, full.share.value) == ("full model", 0.75, 1.0)
    # the seeds' mean a question: .5, 1, .5, .5
    assert (random.accuracy.value, random.seeds) == (0.625, (0, 1))
    assert random.spread == pytest.approx((0.5**2 / 8) ** 0.5)
    assert random.tokens == 49 and random.kept == pytest.approx(0.49)
    assert uniform.share.value == pytest.approx(0.5 / 0.75)
    assert uniform.kinds == {"a": (0.5, 4)}
    # uniform is slower than random and worse: not on the front
    assert [entry.front for entry in found.entries] == [True, True, False]
    ((_, comparison),) = found.against_baseline
    assert (comparison.first, comparison.second) == ("uniform", "random")
    assert comparison.difference.value == pytest.approx(-0.125)
    assert comparison.verdict == "none"
    assert {c.second for _, c in found.against_full} == {"the full model"}


def test_share_is_taken_on_common_questions():
    half = Setting("uniform", 0.5)
    missing = [replace(row, score=None, error="lost") for row in rows(1, 1, 1, 0)[:1]]
    answers = [*missing, *rows(1, 1, 1, 0)[1:], *rows(1, 1, 0, 0, setting=half)]
    full, uniform = analyse(answers, [FULL, half], 4, resamples=100).entries
    assert (full.answered, full.failed, full.partial) == (3, 1, True)
    assert full.accuracy.value == pytest.approx(2 / 3)
    assert uniform.accuracy.value == 0.5 and uniform.share.value == 0.5
    assert not uniform.partial


def test_options_tell_settings_of_a_method_apart():
    plain, wide = Setting("pool", 0.5), Setting("pool", 0.5, options={"window": 4})
    answers = [*rows(1, 0, setting=plain), *rows(1, 1, setting=wide)]
    found = analyse(answers, [plain, wide], 2, resamples=100)
    assert found.labels == ["pool", "pool (window=4)"]
    assert found.full is None and found.baselines == []
    assert len(found.others) == 1 and found.against_full == []


def test_dollar_signs_are_no_formula():
    answers = rows(1, 0, setting=FULL)
    odd = [Setting("pool", 0.5, options={"rule": rule}) for rule in ("$x^2$", r"$\frac$")]
    answers += [row for setting in odd for row in rows(1, 0, setting=setting)]
    found = analyse(answers, [FULL, *odd], 2, resamples=100)
    page = charts.svg(charts.against_retention(found, "accuracy"), "name", "label")
    assert "$x^2$" in page and r"$\frac$" in page


def test_a_baseline_that_was_not_measured_is_named(runs, tmp_path, capsys):
    argv = ["report", str(runs / "accuracy"), "--output", str(tmp_path / "out")]
    assert main([*argv, "--resamples", "100", "--baseline", "unifrom"]) == 1
    message = capsys.readouterr().err
    assert "baseline: got 'unifrom', the runs have" in message
    assert "did you mean 'uniform'" in message and not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [charts.WIDE, charts.NARROW])
def test_retentions_on_a_crowded_front_cover_nothing(size):
    crowd = [Setting(name, 0.5) for name in synthetic.MANY]
    answers = rows(*[1.0] * 300, tokens=1000)
    for place, setting in enumerate(crowd):  # a few tokens more each, and a little more accurate
        right = 280 + place
        scores = [1.0] * right + [0.0] * (300 - right)
        answers += rows(*scores, setting=setting, tokens=50 + 8 * place)
    found = analyse(answers, [FULL, *crowd], 300, resamples=200)
    front = [entry for entry in found.entries if entry.front and not entry.full]
    assert len(front) == len(crowd)
    figure = charts.against_cost(found, "accuracy", size)
    figure.canvas.draw()
    (axes,) = figure.axes
    texts = [text for text in axes.texts if text.get_text() == "50 %"]
    assert len(texts) == len(front)
    boxes = [text.get_window_extent() for text in texts]
    bars = [
        Bbox(axes.transData.transform([(entry.tokens, 100 * end) for end in (low, high)]))
        for entry in found.entries
        for low, high in [(entry.accuracy.low, entry.accuracy.high)]
    ]
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in (*boxes[:number], *bars))
        assert box.x0 >= axes.bbox.x0 and box.y1 <= figure.bbox.y1


def test_answers_must_belong_to_the_run():
    with pytest.raises(VTCError, match="'none@1' is not among the settings"):
        analyse(rows(1), [Setting("pool", 0.5)], 1)
    with pytest.raises(VTCError, match="no question was answered"):
        analyse([synthetic.failed(row) for row in rows(1)], [FULL], 1)


# -- what goes together ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"model": {**synthetic.MODEL, "sha256": "ef" * 32}},
            r"model\.sha256 is abababababab\.\.\. and efefefefefef\.\.\.",
        ),
        ({"model": {**synthetic.MODEL, "dtype": "bfloat16"}}, "model.dtype is 'float32' and 'bf"),
        (
            {"suite": {"name": "synthetic", "metric": "accuracy", "limit": None, "items": 32,
                       "facts": {"seed": 2, "count": 32}}},
            "suite.facts.seed is 1 and 2",
        ),
        (
            {"generation": {"max_new_tokens": 9, "do_sample": False, "positions": "original"}},
            "generation.max_new_tokens is 8 and 9",
        ),
    ],
)  # fmt: skip
def test_other_model_data_or_prompt_is_refused(tmp_path, capsys, changes, message):
    one, two = ([FULL, Setting("pool", share)] for share in (0.5, 0.25))
    synthetic.write_accuracy(tmp_path / "one", one, 4)
    synthetic.write_accuracy(tmp_path / "two", two, 4, **changes)
    argv = ["report", str(tmp_path / "one"), str(tmp_path / "two"), "--allow", "code"]
    assert main([*argv, "--output", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err
    assert re.search(message, told) and "'one'" in told and "'two'" in told
    assert not (tmp_path / "out").exists()


def test_other_code_needs_a_word(tmp_path):
    chosen = [FULL, Setting("pool", 0.5)]
    synthetic.write_accuracy(tmp_path / "one", chosen[:1], 4)
    other = {**synthetic.CODE, "commit": "beef" * 10}
    synthetic.write_accuracy(tmp_path / "two", chosen, 4, code=other)
    folders = [tmp_path / "one", tmp_path / "two"]
    with pytest.raises(VTCError, match="'one' and 'two' differ: code.commit.*--allow code"):
        collect(folders)
    with pytest.raises(VTCError, match="--allow code"):
        collect(folders, ["packages"])
    (warning,) = collect(folders, ["code"]).warnings
    assert "code.commit" in warning and "allowed" in warning
    with pytest.raises(VTCError, match="allow: got 'model', allowed are code, packages"):
        collect(folders, ["model"])


def test_a_setting_of_two_runs_must_agree(tmp_path):
    chosen = [FULL, Setting("pool", 0.5), Setting("pool", 0.25)]
    synthetic.write_accuracy(tmp_path / "one", chosen[:2], 4)
    synthetic.write_accuracy(tmp_path / "two", [chosen[0], chosen[2]], 4)
    both = collect([tmp_path / "one", tmp_path / "two"])
    assert len(both.answers) == 3 * 32  # the full model once
    assert len(analyse(both.answers, both.settings, 32, resamples=50).entries) == 3
    changed = synthetic.answers([chosen[0], chosen[2]], 4)
    changed[5] = replace(changed[5], prediction="perhaps")
    synthetic.write_accuracy(tmp_path / "two", [chosen[0], chosen[2]], 4, rows=changed)
    with pytest.raises(VTCError, match="both measured none@1 and differ: question '0000-5'"):
        collect([tmp_path / "one", tmp_path / "two"])


def test_times_are_of_the_same_model_and_attention(tmp_path):
    accuracy = synthetic.write_accuracy(tmp_path / "accuracy", images=2)
    found = collect([accuracy, synthetic.write_efficiency(tmp_path / "efficiency")])
    assert found.times["uniform@0.5"].median == pytest.approx(0.65)
    assert found.warnings == []
    facts = json.loads((tmp_path / "efficiency" / "run.json").read_text())
    facts.update(rounds=5, finished_rounds=2, warnings=["the machine was busy"])
    (tmp_path / "efficiency" / "run.json").write_text(json.dumps(facts))
    assert collect([accuracy, tmp_path / "efficiency"]).warnings == [
        "Times: the machine was busy.", "Times: the run was stopped after 2 of 5 rounds."
    ]  # fmt: skip
    other = {**synthetic.MODEL, "name": "llava-next-7b"}
    synthetic.write_efficiency(tmp_path / "efficiency", model=other)
    with pytest.raises(VTCError, match="model.name is 'reference' and 'llava-next-7b'"):
        collect([accuracy, tmp_path / "efficiency"])
    with pytest.raises(VTCError, match="no accuracy run"):
        collect([tmp_path / "efficiency"])
    with pytest.raises(VTCError, match="no readable run.json"):
        collect([tmp_path])


def test_a_headline_that_is_no_mean_is_told(tmp_path):
    """MMBench counts a question only when all its turned copies are right; whether the two figures
    are equal by chance, as here, makes no difference."""
    suite = {"name": "mmbench", "metric": "accuracy", "limit": None, "items": 2, "facts": {}}
    synthetic.write_accuracy(tmp_path, [FULL], rows=rows(1, 1), suite=suite)
    found = collect([tmp_path])
    assert found.metric == "mean score" and "summary.md" in found.warnings[0]
    for name in ("gqa", "not one of vtc's"):
        synthetic.write_accuracy(tmp_path, [FULL], rows=rows(1, 1), suite={**suite, "name": name})
        found = collect([tmp_path])
        assert found.metric == "accuracy" and found.warnings == []


# -- the page ----------------------------------------------------------------------------------


class Outline(html.parser.HTMLParser):
    """Tags, ids and links of a page, and whether every tag is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.links = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        self.ids += [attributes["id"]] if "id" in attributes else []
        for name in ("href", "src", "xlink:href"):
            self.links += [attributes[name]] if name in attributes else []
        if tag not in ("meta", "link", "br", "img", "input", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_whole_and_needs_nothing_else(out):
    text = (out / "report.html").read_text(encoding="utf-8")
    page = Outline(text)
    assert page.open == []
    assert len(set(page.ids)) == len(page.ids)
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org)", text)
    named = [a for tag, a in page.tags if tag == "svg" and "aria-hidden" not in a]
    assert len(named) == 4 and all(a["role"] == "img" and a["aria-label"] for a in named)
    assert all("scope" in a for tag, a in page.tags if tag == "th")
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))
    for text_of in ("globalcom2 is better than random by", "At own count recoverable scores"):
        assert text_of in text


def test_files_agree_and_are_the_same_every_time(runs, out, tmp_path):
    table = list(csv.DictReader((out / "table.csv").open()))
    text = (out / "report.html").read_text(encoding="utf-8")
    assert [row["method"] for row in table][:2] == ["full model", "globalcom2"]
    for row in table:
        assert f'data-value="{float(row["visual_tokens"])}"' in text
        assert row["planned"] == str(320 * int(row["seeds"]))
    assert len(list(csv.DictReader((out / "question_types.csv").open()))) == 3 * len(table)
    found = list(csv.DictReader((out / "comparisons.csv").open()))
    assert len(found) == 13 + 9 + 9
    against = {row["second"] for row in found} - {"the full model"}
    assert against == {"random", "uniform", "recoverable"}
    for name in ("accuracy_retention.png", "accuracy_time.png", "question_types.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    argv = [str(runs / name) for name in ("accuracy", "efficiency")]
    assert main(["report", *argv, "--output", str(tmp_path), "--resamples", "500"]) == 0
    for path in out.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_page_with_all_methods(crowd):
    text = (crowd / "report.html").read_text(encoding="utf-8")
    page = Outline(text)
    assert page.open == [] and len(set(page.ids)) == len(page.ids)
    boxes = [a for tag, a in page.tags if tag == "input" and a.get("type") == "checkbox"]
    assert len(boxes) == len(synthetic.EVERY)
    assert sum("checked" in box for box in boxes) == LINES
    marks = [a for tag, a in page.tags if "data-method" in a]
    assert {a["data-method"] for a in marks} == {a["value"] for a in boxes}
    for box in boxes:
        lines = [a for a in marks if a["data-method"] == box["value"]]
        assert all(("off" in a.get("class", "")) == ("checked" not in box) for a in lines)
    for name in synthetic.EVERY:
        assert f">{name}</th>" in text.replace("_<wbr>", "_")
    assert 'id="hard"' in text and "Against uniform" in text
    assert len(text) < 3_000_000


def test_hard_questions_by_hand():
    quarter, low = Setting("pool", 0.25), Setting("pool", 0.1)
    coarse = Setting("none", options={"pixels": 0.25})
    answers = [
        *rows(1, 1, 1, 0, 1),
        *rows(1, 0, 0, 0, 0, setting=coarse),
        *rows(0, 1, 0, 1, 1, setting=quarter),
        *rows(1, 1, 1, 1, 1, setting=low),
    ]
    found = analyse(answers, [FULL, coarse, quarter, low], 5, resamples=200)
    assert found.hard == {0.25: 3} and [entry.label for entry in found.entries] == [
        "full model", "pool", "pool"
    ]  # fmt: skip
    by_share = {entry.retention: entry.hard for entry in found.entries}
    assert by_share[0.25].value == pytest.approx(2 / 3)
    assert all(math.isnan(by_share[share].value) for share in (1.0, 0.1))


def test_every_method_is_compared_with_every_baseline():
    names = ("pool", "random", "scope", "uniform")
    chosen = [Setting(name, 0.25) for name in names]
    answers = [row for setting in chosen for row in rows(1, 0, 1, 1, setting=setting)]
    found = analyse(answers, chosen, 4, resamples=100)
    assert found.baselines == ["random", "uniform"]
    pairs = {(c.first, c.second) for _, c in found.against_baseline}
    assert pairs == {
        ("pool", "random"), ("scope", "random"), ("uniform", "random"),
        ("pool", "uniform"), ("scope", "uniform"),
    }  # fmt: skip
    assert [(c.first, c.second) for _, c in found.others] == [("pool", "scope")]


def test_no_two_of_all_methods_look_alike(crowd_results):
    found = crowd_results
    assert len(found.shown) == LINES and {"random", "uniform"} <= set(found.shown)
    looks = [charts.style(found, label) for label in found.labels]
    assert len(set(looks)) == len(looks) == len(synthetic.EVERY)
    assert len({charts.style(found, label)[0] for label in found.shown}) == LINES
    # every number of methods up to all pairs
    pairs = {
        (n % len(charts.SERIES), n % len(charts.MARKERS))
        for n in range(len(charts.SERIES) * len(charts.MARKERS))
    }
    assert len(pairs) == len(charts.SERIES) * len(charts.MARKERS)


@pytest.mark.parametrize("size", [charts.WIDE, charts.NARROW])
def test_names_of_all_methods_cover_nothing(crowd_results, size):
    figure = charts.against_retention(crowd_results, "accuracy", size, page=True)
    figure.canvas.draw()
    (axes,) = figure.axes
    texts = [text for text in axes.texts if text.get_text()]
    assert len(texts) == len(synthetic.EVERY) + 1
    boxes = [Text.get_window_extent(text) for text in texts]  # without the lines that lead there
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:number])
        assert box.y0 >= 0 and box.y1 <= figure.bbox.y1


def test_a_run_that_was_stopped_is_shown_as_partial(tmp_path):
    chosen = [FULL, Setting("globalcom2", 0.1), Setting("uniform", 0.1)]
    every = synthetic.answers(chosen, 4)
    some = [synthetic.failed(row) if row.item == "0000-1" else row for row in every[:72]]
    synthetic.write_accuracy(tmp_path / "run", chosen, 4, rows=some)
    argv = ["report", str(tmp_path / "run"), "--output", str(tmp_path), "--resamples", "50"]
    assert main([*argv, "--title", "<b>mine</b> & yours"]) == 0
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "The runs are not complete: 27 rows are missing under 3 of 3 settings, 3 of them" in text
    assert "of 32, partial" in text and "3 × image: cannot be read" in text
    assert "Only 4 independent images" in text
    assert "No efficiency run was given" in text and (tmp_path / "accuracy_tokens.png").exists()
    assert "cannot be made again: suite: got &#39;synthetic&#39;" in text
    assert "&lt;b&gt;mine&lt;/b&gt; &amp; yours" in text and "<b>mine" not in text


# -- pictures ----------------------------------------------------------------------------------


def test_questions_are_chosen_for_disagreement():
    chosen = [FULL, *(Setting(name, 0.25) for name in ("globalcom2", "pool", "uniform"))]
    scores = [(1, 1, 1, 0, 1), (1, 1, 0, 0, 1), (1, 0, 0, 0, 1), (1, 0, 1, 1, 1)]
    answers = [
        row for s, score in zip(chosen, scores, strict=True) for row in rows(*score, setting=s)
    ]
    found = analyse(answers, chosen, 5, resamples=50)
    # all agree on i0 and i4; the full model is wrong on i3
    assert kept.choose(found, 0.25, 9) == ["i1", "i2", "i3"]
    assert kept.choose(found, 0.25, 1) == ["i1"]
    assert kept.choose(found, 0.5, 1) == []


def test_pictures_are_made_again_from_the_manifest(tmp_path, capsys):
    """A run of the reference model on its own suite: the kept tokens are those of the run."""
    run = tmp_path / "run"
    argv = ["accuracy", "--suite", "reference", "--methods", "random,uniform", "--retention", "0.1"]
    sizes = ["--suite-option", "reference.scenes=3", "--suite-option", "reference.questions=4"]
    assert main([*argv, *sizes, "--seeds", "1", "--output", str(run), "--quiet"]) == 0
    report = ["report", str(run), "--output", str(tmp_path / "out"), "--resamples", "50"]
    assert main([*report, "--pictures", "1"]) == 0
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    images = [a for tag, a in Outline(text).tags if tag == "img"]
    assert [a["alt"].split(":")[0] for a in images] == [
        "The image that is asked about", "What random keeps", "What uniform keeps",
    ]  # fmt: skip
    counts = {
        (row["patches"], row["patches_full"])
        for row in map(json.loads, (run / "answers.jsonl").read_text().splitlines())
        if row["setting"] != "none@1"
    }
    for image in images[1:]:
        told = tuple(map(int, re.findall(r"(\d+) of (\d+)", image["alt"])[0]))
        assert told in counts
    assert all(a["src"].startswith("data:image/jpeg;base64,") for a in images)
    facts = json.loads((run / "run.json").read_text())
    facts["model"]["sha256"] = "0" * 64
    (run / "run.json").write_text(json.dumps(facts))
    assert main(report) == 0
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "cannot be made again: model: its sha256 is" in text and "<img" not in text
    capsys.readouterr()
    assert main([*report, "--pictures-at", "0.3"]) == 1
    assert "pictures-at: got 0.3, measured are 0.1" in capsys.readouterr().err


def test_help_is_quick_and_says_what_is_needed(capsys):
    assert main(["report", "--help"]) == 0
    assert "--allow KEY" in capsys.readouterr().out
    assert main(["report", str(Path("nowhere")), "--output", "out"]) == 1
    assert "run='nowhere': no readable run.json" in capsys.readouterr().err
