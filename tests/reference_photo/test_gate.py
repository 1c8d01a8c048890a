"""Which tasks are evidence."""

from __future__ import annotations

import pytest

from vtc.errors import VTCError
from vtc.eval.common.records import Answer
from vtc.eval.common.settings import FULL
from vtc.eval.reference_photo.gate import table, tasks


def said(kind, right, answers, setting=FULL.key):
    return [
        Answer(setting, f"{kind}-{n}", "", kind, (answer,), "", score=float(n < right))
        for n, answer in enumerate(answers)
    ]


def test_a_task_passes_by_its_share_and_by_its_lead():
    colors, yes_no = list("aabbccddee"), ["yes"] * 5 + ["no"] * 5
    run = said("color", 6, colors) + said("exist", 8, yes_no) + said("count", 5, list("1234567890"))
    run += said("color", 0, colors, "pool@0.25")  # of the uncompressed model alone
    blind = said("color", 1, colors) + said("exist", 2, yes_no) + said("count", 0, "x" * 10)
    found = {task.name: task for task in tasks(run, blind)}
    assert (found["color"].full, found["color"].blind, found["color"].majority) == (0.6, 0.1, 0.2)
    assert found["color"].evidence
    assert found["exist"].majority == 0.5 and found["exist"].evidence  # 30 points, no less
    assert not found["count"].evidence  # right too seldom
    assert "| color | 10 | 60.0 | 10.0 | 20.0 | yes |" in table(found.values())


def test_the_majority_counts_as_a_baseline():
    run, blind = said("exist", 7, ["yes"] * 5 + ["no"] * 5), said("exist", 0, "x" * 10)
    assert not tasks(run, blind)[0].evidence


def test_other_questions_are_refused():
    with pytest.raises(VTCError, match="blind: got a run about other questions"):
        tasks(said("exist", 1, ["yes"]), said("count", 1, ["1"]))
