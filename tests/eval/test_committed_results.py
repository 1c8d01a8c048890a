"""The committed accuracy result: its figures follow from its answers, and the docs show them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from vtc.eval.accuracy.summary import markdown, summarise
from vtc.eval.common.records import read_answers, read_manifest
from vtc.eval.efficiency.lines import Line, Measure, read_measures
from vtc.registry import compared_methods

ROOT = Path(__file__).parents[2]
RUN = ROOT / "docs" / "results" / "reference"


def test_every_question_was_answered_under_every_setting():
    keys = {entry["key"] for entry in read_manifest(RUN)["settings"]}
    answers = read_answers(RUN)
    counts = Counter(answer.setting for answer in answers)
    assert set(counts) == keys and len(set(counts.values())) == 1
    assert next(iter(counts.values())) >= 2000
    assert not [answer for answer in answers if answer.error]
    seeds = [key for key in keys if key.startswith("random@0.25")]
    assert len(seeds) >= 3
    measured = {key.partition("@")[0] for key in keys}
    text = (ROOT / "docs" / "accuracy.md").read_text()
    _, _, stated = text.partition("Not measured yet: ")
    names = stated.split(".")[0].replace("`", "").replace("\n", " ").split(", ")
    assert {name for name in names if name} == set(compared_methods()) - measured


def test_docs_show_what_follows_from_the_answers():
    summary, stored = summarise(RUN), json.loads((RUN / "summary.json").read_text())
    for found, expected in zip(summary["settings"], stored["settings"], strict=True):
        assert found["value"] == pytest.approx(expected["value"]), found["key"]
    table = (RUN / "summary.md").read_text()
    assert markdown(summary) == table
    assert table in (ROOT / "docs" / "accuracy.md").read_text()


def test_docs_show_the_efficiency_inside_the_language_model():
    """Every cell is a figure of the committed run."""
    folder = ROOT / "docs" / "results" / "efficiency" / "inside"
    lines = read_measures(folder)
    layers = read_manifest(folder)["layers"]["language"]
    assert layers >= 8 and all(line.error is None for line in lines)
    text = (ROOT / "docs" / "efficiency.md").read_text()
    for line in lines:
        assert _row(line) in text


def _row(line: Line) -> str:
    """A row of the table, as measured and extrapolated to the published depth."""

    def times(figure: Measure, ideal: bool = False) -> str:
        ratio = figure.ideal if ideal else figure.ratio
        assert ratio is not None
        return f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"

    def counted(figure: Measure, ideal: bool = False) -> str:
        ratio = figure.ideal if ideal else figure.ratio
        assert ratio is not None
        return f"{ratio.median:.2f}"

    now, then = line.measures, line.extrapolated
    cells = [
        "none" if line.method == "none" else f"`{line.method}`",
        f"{line.average_tokens:.0f}",
        times(now["prefill_time"]),
        times(now["prefill_time"], ideal=True),
        times(then["prefill_time"]),
        times(then["prefill_time"], ideal=True),
        counted(then["prefill_flops"]),
        counted(then["kv_cache"]),
        counted(then["kv_cache"], ideal=True),
    ]
    return f"| {' | '.join(cells)} |"
