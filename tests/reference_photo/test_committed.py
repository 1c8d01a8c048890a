"""The committed runs of the photo model: figures follow from answers, and the page shows them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from vtc.eval.accuracy.summary import markdown, summarise
from vtc.eval.common.records import read_answers, read_manifest
from vtc.eval.efficiency.lines import read_measures
from vtc.eval.reference_photo import checkpoint_path
from vtc.eval.reference_photo.gate import table, tasks
from vtc.eval.reference_photo.parts import digest
from vtc.eval.reference_photo.table import accuracies
from vtc.eval.reference_photo.table import table as short

ROOT = Path(__file__).parents[2]
RUN, GATE, BLIND, TIME = (
    ROOT / "docs/results" / name
    for name in ("photo", "photo-gate", "photo-blind", "efficiency/photo")
)
PAGE = (ROOT / "docs/reference-photo.md").read_text()
CARD = (checkpoint_path().parent / "MODEL_CARD.md").read_text()
#: tasks that are evidence
EVIDENCE = ["naming", "garment", "color", "exist", "position"]


def test_every_question_was_answered_under_every_setting():
    answers = read_answers(RUN)
    counts = Counter(answer.setting for answer in answers)
    assert set(counts) == {entry["key"] for entry in read_manifest(RUN)["settings"]}
    assert len(set(counts.values())) == 1 and not [a for a in answers if a.error]


def test_the_page_shows_what_follows_from_the_answers():
    summary, stored = summarise(RUN), json.loads((RUN / "summary.json").read_text())
    for found, expected in zip(summary["settings"], stored["settings"], strict=True):
        assert found["value"] == pytest.approx(expected["value"]), found["key"]
    assert markdown(summary) == (RUN / "summary.md").read_text()
    assert short(read_answers(RUN), EVIDENCE) in PAGE
    share = {key: 100 * v for key, v in accuracies(read_answers(RUN), EVIDENCE).items()}
    ours, full, grid = (share[key] for key in ("coverage@0.05", "none@1", "uniform@0.05"))
    said = f"at 5 % `coverage` has {ours:.1f} there, all tokens {full:.1f}, `uniform` {grid:.1f}"
    assert said in " ".join((ROOT / "README.md").read_text().split())
    found = tasks(read_answers(GATE), read_answers(BLIND))
    assert table(found) in PAGE and table(found) in CARD
    assert [task.name for task in found if task.evidence] == EVIDENCE


def test_the_page_shows_the_times_that_were_measured():
    def cell(ratio):
        return f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"

    for line in read_measures(TIME):
        if line.error is None:
            name = f"| {line.method} | {line.retention:.0%} | {line.average_tokens:.0f}"
            first, prefill, flops = (
                line.measures[n].ratio for n in ("ttft", "prefill_time", "flops")
            )
            assert f"{name} | {cell(first)} | {cell(prefill)} | {flops.median:.2f} |" in PAGE
        else:
            assert line.method in ("fastv", "pyramiddrop") and line.retention < 0.25


def test_the_page_and_the_card_name_the_weights_that_were_measured():
    sha = digest(checkpoint_path() / "trained.safetensors")
    assert sha[:16] in PAGE
    assert sha[:16] in CARD


def test_what_make_photo_asks_was_asked_here():
    """Every method of the Makefile's lists is in the committed run, so none is refused there."""
    lines = (ROOT / "Makefile").read_text().splitlines()
    texts = [line.split(":=")[1] for line in lines if line.startswith(("FRONT ", "INSIDE "))]
    names = {name.strip() for text in texts for name in text.split(",")} - {"$(FRONT)"}
    assert len(names) > 25
    assert names <= {entry["method"] for entry in read_manifest(RUN)["settings"]}
