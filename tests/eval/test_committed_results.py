"""The committed accuracy result: its figures follow from its answers, and the docs show them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from vtc.eval.accuracy.summary import markdown, summarise
from vtc.eval.common.records import read_answers, read_manifest
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
