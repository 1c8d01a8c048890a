"""Ratios of `vtc.eval efficiency` on made-up times, its lines and its table."""

from __future__ import annotations

import csv
import dataclasses

import pytest

from vtc.errors import VTCError
from vtc.eval.common.timing import Ratio, ratio, spread, turns
from vtc.eval.efficiency.figures import Series, measures, noisy
from vtc.eval.efficiency.lines import LINES, MEASURES, Line, read_measures, write_summary
from vtc.eval.efficiency.passes import Pass
from vtc.eval.efficiency.table import HEADER, cells

COUNTED = (
    *("peak_memory", "kv_cache"),
    *("vision_flops", "selection_flops", "prefill_flops", "inside_flops", "flops"),
)


def series(counts: dict[str, float], *rounds: dict[str, float]) -> Series:
    """Counts and rounds that are 0 where nothing is given; twice as much at the published depth."""

    def one(names, given) -> Pass:
        figures = {name: given.get(name, 0.0) for name in names}
        return Pass(figures, {name: 2 * value for name, value in figures.items()})

    timed = [name for name in MEASURES if name not in COUNTED]
    return Series(one(COUNTED, counts), [one(timed, given) for given in rounds])


def times(vision: float, selection: float, prefill: float) -> dict[str, float]:
    return {
        "vision_time": vision,
        "selection_time": selection,
        "prefill_time": prefill,
        "ttft": vision + selection + prefill,
    }


FULL = series(
    {"flops": 100.0, "vision_flops": 40.0, "prefill_flops": 60.0},
    times(1.0, 0.0, 9.0),
    times(2.0, 0.0, 18.0),
    times(1.0, 0.0, 4.0),
)
SHORT = series(
    {"flops": 60.0, "vision_flops": 40.0, "selection_flops": 5.0, "prefill_flops": 15.0},
    times(1.0, 1.0, 3.0),
    times(2.0, 2.0, 6.0),
    times(1.0, 1.0, 2.0),
)
ALONE = series(
    {"flops": 15.0, "prefill_flops": 15.0},
    times(0.0, 0.0, 3.0),
    times(0.0, 0.0, 6.0),
    times(0.0, 0.0, 1.0),
)


def test_ratios_are_taken_round_by_round():
    found = measures(SHORT, FULL, ALONE, FULL)
    # 5 / 10, 10 / 20, 4 / 5
    assert found["ttft"].ratio == Ratio(0.5, 0.5, 0.65, 3)
    assert (found["ttft"].value, found["ttft"].low, found["ttft"].high) == (5.0, 4.5, 7.5)
    assert found["prefill_time"].ratio == Ratio(
        pytest.approx(1 / 3), *[pytest.approx(1 / 3), pytest.approx(5 / 12)], 3
    )
    assert found["flops"].ratio == Ratio(0.6, 0.6, 0.6, 1)


def test_the_ideal_is_the_encoder_as_it_is_and_the_language_model_alone():
    found = measures(SHORT, FULL, ALONE, FULL)
    # 5 / (1 + 3), 10 / (2 + 6), 4 / (1 + 1)
    assert found["ttft"].ideal == Ratio(1.25, 1.25, 1.625, 3)
    assert found["vision_time"].ideal == Ratio(1.0, 1.0, 1.0, 3)
    assert found["prefill_time"].ideal == Ratio(1.0, 1.0, 1.5, 3)
    assert found["flops"].ideal.median == 60 / (40 + 15)
    assert found["prefill_flops"].ideal.median == 1


def test_nothing_is_compared_with_zero_or_with_nothing():
    found = measures(SHORT, FULL, ALONE, FULL)
    assert found["selection_time"].ratio is None and found["selection_time"].ideal is None
    lonely = measures(SHORT, None, None, None)
    assert all(figure.ratio is None and figure.ideal is None for figure in lonely.values())
    assert lonely["ttft"].value == 5.0


def test_figures_at_the_published_depth_come_from_the_same_rounds():
    found = measures(SHORT, FULL, ALONE, FULL, true_depth=True)
    assert found["ttft"].value == 10.0 and found["ttft"].ratio == Ratio(0.5, 0.5, 0.65, 3)
    assert found["ttft"].ideal == Ratio(1.25, 1.25, 1.625, 3)


def test_a_setting_that_failed_is_compared_over_the_rounds_it_has():
    failed = Series(SHORT.counted, SHORT.rounds[:2])
    assert measures(failed, FULL, ALONE, FULL)["ttft"].ratio == Ratio(0.5, 0.5, 0.5, 2)
    assert measures(failed, FULL, ALONE, FULL)["ttft"].ideal == Ratio(1.25, 1.25, 1.25, 2)
    # the uncompressed model failed: later rounds have nothing to be compared with
    gone = Series(FULL.counted, FULL.rounds[:1])
    assert measures(SHORT, gone, ALONE, gone)["ttft"].ratio is None
    before = Series(SHORT.counted)
    assert "ttft" not in measures(before, FULL, ALONE, FULL)
    assert measures(before, FULL, ALONE, FULL)["flops"].value == 60


def test_wide_quartiles_are_noticed():
    found = measures(SHORT, FULL, ALONE, FULL)
    assert noisy(found) == ["prefill_time", "ttft"]
    assert noisy(measures(SHORT, SHORT, None, None)) == []


def test_spread_and_turns():
    assert spread([3.0]) == (3.0, 3.0, 3.0)
    assert spread([4.0, 1.0, 2.0, 3.0, 5.0]) == (3.0, 2.0, 4.0)
    assert ratio([1.0, 4.0], [2.0, 2.0]) == Ratio(1.25, 0.875, 1.625, 2)
    assert list(turns(["a", "b"], 2)) == [(0, ["b", "a"]), (1, ["a", "b"])]


def line(**changes) -> Line:
    figures = measures(SHORT, FULL, ALONE, FULL)
    made = Line("pool@0.25", "pool", 0.25, 0, {"x": 1}, "sdpa", tokens=7, measures=figures)
    return dataclasses.replace(made, **changes)


def test_lines_are_read_back(tmp_path):
    lines = [
        line(notes=("one", "two")),
        line(extrapolated=measures(SHORT, FULL, None, FULL, true_depth=True)),
        line(measures={}, tokens=None, error="out of memory"),
        line(lengths=(10, 5), average_tokens=2.5),
    ]
    (tmp_path / LINES).write_text("".join(one.line() + "\n" for one in lines))
    assert read_measures(tmp_path) == lines


def test_what_is_no_efficiency_run_is_refused(tmp_path):
    with pytest.raises(VTCError, match="no readable measures.jsonl"):
        read_measures(tmp_path)
    (tmp_path / LINES).write_text('{"setting": "pool@0.25"}\n')
    with pytest.raises(VTCError, match="measures.jsonl', line 1: "):
        read_measures(tmp_path)


def test_summary_has_a_row_a_setting(tmp_path):
    write_summary(tmp_path / "summary.csv", [line(), line(measures={}, error="no, not here")])
    with open(tmp_path / "summary.csv", newline="") as file:
        first, second = csv.DictReader(file)
    assert float(first["ttft_ratio"]) == 0.5 and float(first["ttft_ideal_high"]) == 1.625
    assert first["selection_time_ratio"] == "" and float(first["selection_time_value"]) == 1.0
    assert second["error"] == "no, not here" and second["ttft_ratio"] == ""
    assert not any(name.startswith("extrapolated") for name in first)
    deep = line(extrapolated=measures(SHORT, FULL, None, FULL, true_depth=True))
    write_summary(tmp_path / "summary.csv", [deep])
    with open(tmp_path / "summary.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["extrapolated_ttft_value"]) == 10.0


def test_cells():
    row = dict(zip(HEADER, cells(line()), strict=True))
    assert row["method"] == "pool" and row["share"] == "0.25" and row["tokens"] == "7"
    assert row["selection"] == "1000.0\n20.0%"
    assert row["first token"] == "0.50\n0.50-0.65" and row["to ideal"] == "1.25\n1.25-1.62"
    assert row["FLOPs"] == "0.60" and row["cache"] == "-"
    assert row["prefill to ideal"] == "1.00\n1.00-1.50"
    inside = line(tokens=7, prompt=10, lengths=(10, 5, 5, 4), average_tokens=2.8)
    assert cells(inside)[2] == "3" and cells(inside, extrapolated=True)[2] == "-"
    deep = dataclasses.replace(inside, extrapolated=inside.measures)
    assert cells(deep, extrapolated=True)[2] == "3"
    assert cells(line(measures={}))[2:] == ["-"] * (len(HEADER) - 2)
