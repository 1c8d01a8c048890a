"""The table of all methods is the mean of their answers, in order of the lowest retention."""

from __future__ import annotations

import pytest

from vtc.errors import VTCError
from vtc.eval.common.records import Answer
from vtc.eval.common.settings import FULL
from vtc.eval.reference_photo.table import accuracies, table


def said(setting, colors, counts):
    """Answers about colours and numbers, so many of four right."""
    return [
        Answer(setting, f"{kind}-{n}", "", kind, ("x",), "", score=float(n < right))
        for kind, right in (("color", colors), ("count", counts))
        for n in range(4)
    ]


RUN = [
    *said(FULL.key, 4, 2),
    *said("pool@0.25", 3, 1),
    *said("pool@0.05", 1, 0),
    *said("scope@0.05", 2, 2),
    *said('scope@0.25{"a": 1}', 4, 4),
    *said("fastv@0.5", 2, 0),
    *said('none@1{"pixels": 0.05}', 0, 0),
]


def test_rows_are_means_over_all_and_over_some():
    assert table(RUN, ["color"]).splitlines() == [
        "All tokens: 75.0 / 100.0",
        "",
        "| method | 50 % | 25 % | 5 % |",
        "|---|---:|---:|---:|",
        "| scope |  |  | 50.0 / 50.0 |",
        "| pool |  | 50.0 / 75.0 | 12.5 / 25.0 |",
        "| a coarser picture |  |  | 0.0 / 0.0 |",
        "| scope (a=1) |  | 100.0 / 100.0 |  |",
        "| fastv | 25.0 / 50.0 |  |  |",
    ]


def test_failed_answers_are_left_out_and_unknown_kinds_are_named():
    failed = Answer("pool@0.05", "color-9", "", "color", ("x",), None, score=None, error="no")
    assert accuracies([*RUN, failed])["pool@0.05"] == 0.125
    with pytest.raises(VTCError, match="kinds: got taste"):
        accuracies(RUN, ["taste"])
