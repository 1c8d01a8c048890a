"""What the README shows can be run; its tables say what registry and committed results say."""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from pathlib import Path

import pytest

from tests.docs.pages import code
from vtc.eval.reference import load_reference, prompt, scenes
from vtc.registry import list_methods

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")


def table(heading: str) -> list[list[str]]:
    """Cells of the rows of the table that begins with this cell."""
    lines = TEXT.split(f"| {heading} |")[1].split("\n\n")[0].splitlines()[2:]
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[:1] == "|"
    ]


def named(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


def measured() -> dict[str, dict[str, str]]:
    """Method -> retention -> accuracy in %, of the committed answers, with the method's own options."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with (ROOT / "docs/results/reference/summary.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["options"] == "{}" and row["retention"]:
                found[row["method"]][row["retention"]].append(float(row["value"]))
    mean = {m: {r: 100 * sum(v) / len(v) for r, v in by.items()} for m, by in found.items()}
    return {m: {r: f"{value:.1f}" for r, value in by.items()} for m, by in mean.items()}


def test_it_is_short() -> None:
    assert len(TEXT.splitlines()) <= 110


def test_the_code_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model, processor = load_reference()
    scene = next(scenes("test", 1, seed=20))
    text = prompt(scene.questions[0].text)
    inputs = processor(images=scene.image, text=text, return_tensors="pt")
    names = {"model": model, "inputs": inputs, "image": scene.image}
    exec(compile(code(README), str(README), "exec"), names)
    assert "coverage" in capsys.readouterr().out and (tmp_path / "kept.png").is_file()


def test_the_table_of_methods_has_every_name_once() -> None:
    told = [name for row in table("what decides") for name in named(row[1])]
    assert sorted(told) == sorted({*list_methods()} - {"none"})


def test_the_figures_are_those_of_the_committed_answers() -> None:
    figures = measured()
    rows = [
        (row, re.match(r"`(\w+)` ([\d.]+), ([\d.]+)$", row[2])) for row in table("what decides")
    ]
    assert sum(told is not None for _, told in rows) >= 5
    for row, told in rows:
        asked = [name for name in named(row[1]) if name in figures]
        half = re.match(r"`(\w+)` ([\d.]+) at 50 %$", row[2])
        if half is not None:
            assert half[1] == max(asked, key=lambda name: float(figures[name]["0.5"])), row
            assert half[2] == figures[half[1]]["0.5"], row
        elif told is None:
            assert not asked or "clips" in row[0], row
        else:
            known = [name for name in asked if "0.25" in figures[name]]
            assert told[1] == max(known, key=lambda name: float(figures[name]["0.25"])), row
            assert (told[2], told[3]) == (figures[told[1]]["0.25"], figures[told[1]]["0.1"]), row
    best = max(float(by["0.25"]) for by in figures.values() if "0.25" in by)
    both = figures["coverage+pyramiddrop"]["0.1"]
    assert f"`coverage+pyramiddrop` has {both} at 10 %" in TEXT
    full, drawn = figures["none"]["1.0"], figures["random"]
    assert (
        f"chosen by `coverage`, the small model that ships with `vtc` still answers {best} %"
        in " ".join(TEXT.split())
    )
    assert figures["coverage"]["0.25"] == str(best) and f"with all of them {full} %" in TEXT
    assert f"it has {full} with all tokens" in TEXT
    assert f"`random` {drawn['0.25']}\nand {drawn['0.1']}" in TEXT


def test_proportional_attention_has_the_figure_of_its_log() -> None:
    rows = json.loads((ROOT / "eval/reference/logs/proportional.json").read_text())["rows"]
    (tenth,) = (row["proportional"] for row in rows if row["retention"] == 0.1)
    assert f"a tenth is\nenough for {100 * tenth:.1f} %" in TEXT


def test_a_server_answers_as_many_as_the_load_table_says() -> None:
    page = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
    (ratio,) = re.findall(r"^\| 0\.25 \| 32 \| [^|]+ \| ([\d.]+) ", page, re.M)
    assert f"{ratio}\ntimes as many with a quarter of the image tokens" in TEXT


def test_the_time_is_that_of_the_committed_run() -> None:
    (told,) = re.findall(r"first token comes in ([\d.]+) of the time", TEXT)
    assert "extrapolated from" in TEXT
    with (ROOT / "docs/results/efficiency/llava-next-7b/summary.csv").open(
        encoding="utf-8"
    ) as file:
        rows = [row for row in csv.DictReader(file) if row["retention"] == "0.25"]
    ratios = [f"{float(row['extrapolated_ttft_ratio']):.2f}" for row in rows]
    assert ratios.count(told) > len(ratios) / 2, ratios


def test_selection_costs_what_is_said() -> None:
    """The share of the prefill that is said, at most: the largest image of docs/kernels.md."""
    page = (ROOT / "docs/kernels.md").read_text(encoding="utf-8")
    shares = dict(re.findall(r"^\| `(\w+)` \| 2,880[^|]*\| 1 \|.*?\| ([\d.]+)%", page, re.M))
    taken = {name for row in table("your model") for name in named(row[2])} & {*list_methods()}
    assert len(taken & {*shares}) >= 4
    (most,) = re.findall(r"([\d.]+) % of the prefill at most", TEXT)
    assert [name for name in taken & {*shares} if float(shares[name]) > float(most)] == []


def test_what_to_take_exists() -> None:
    rows = table("your model")
    taken = {name for row in rows for name in named(row[2])}
    assert len(rows) >= 9 and taken and taken <= {*list_methods()}
