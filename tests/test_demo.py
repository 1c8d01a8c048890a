"""The demo on two scenes: every file it promises, and numbers that agree with each other."""

from __future__ import annotations

import csv
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vtc.cli import main
from vtc.errors import VTCError
from vtc.eval.common import timing
from vtc.eval.common.loading import Loaded
from vtc.eval.common.settings import Setting
from vtc.eval.demo import pictures
from vtc.eval.demo import run as demo


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    argv = ["demo", "--output", str(folder), "--scenes", "2", "--questions", "3", "--rounds", "2",
            "--methods", "pool", "token_correlation", "--retention", "0.5", "0.25"]  # fmt: skip
    assert main(argv) == 0
    return folder


def test_table_files_agree(folder):
    data = json.loads((folder / "table.json").read_text())
    rows = list(csv.DictReader((folder / "table.csv").open()))
    expected = [("none", 1.0), ("pool", 0.5), ("pool", 0.25)]
    expected += [("token_correlation", r) for r in (0.5, 0.25, None)]
    given = [(row["setting"]["method"], row["setting"]["retention"]) for row in data["rows"]]
    assert given == expected
    assert [row["method"] for row in rows] == [method for method, _ in expected]
    for row, line in zip(data["rows"], rows, strict=True):
        assert float(line["accuracy"]) == row["score"]["accuracy"]
        assert float(line["patch_tokens_kept"]) == row["kept"] <= row["patches"]
        assert float(line["prefill_ratio"]) > 0
    assert data["rows"][0]["kept"] == data["rows"][0]["patches"]
    assert data["rows"][2]["kept"] == pytest.approx(0.25 * data["rows"][2]["patches"], abs=1)
    text = (folder / "table.md").read_text()
    assert text.count("\n| ") == 7 and "Sample scores" in text


def test_page_links_every_picture(folder):
    page = (folder / "index.html").read_text()
    links = re.findall(r"<img src='([^']+)'", page)
    pictures = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    assert sorted(links) == pictures
    sheets = [name for name in pictures if name.endswith("_sheet.png")]
    assert [name.split("/")[1].split("_")[0] for name in sheets] == ["page", "photo", "scene"]
    for name in pictures:
        with Image.open(folder / name) as image:
            image.load()


def test_a_sheet_is_a_grid(monkeypatch):
    """A line a method, a column a retention: no panel over another, none over a name."""
    image = Image.new("RGB", (30, 20))
    shown = pictures.Exhibit("photo", "A photograph", image, "what is it?")
    colours = [(200, 20 * i, 0) for i in range(6)]
    found = []
    for colour, method in zip(colours, ["pool"] * 3 + ["token_correlation"] * 3, strict=True):
        setting = Setting(method, [0.5, 0.25, 0.1][len(found) % 3])
        one = SimpleNamespace(inside=(), average_retention=0.25, patches_before=448, colour=colour)
        found.append((setting, SimpleNamespace(images=[one])))
    monkeypatch.setattr(
        pictures, "paint_panel", lambda _, one, *a, **k: Image.new("RGB", (300, 200), one.colour)
    )
    page = np.asarray(pictures.contact_sheet(shown, found))
    boxes = []
    for colour in colours:
        ys, xs = np.nonzero((page == np.array(colour)).all(-1))
        boxes.append((xs.min(), ys.min()))
        assert len(xs) == 300 * 200, "all of the panel is seen"
    (left, top), step, line = boxes[0], boxes[1][0] - boxes[0][0], boxes[3][1] - boxes[0][1]
    assert boxes == [(left + x * step, top + y * line) for y in range(2) for x in range(3)]
    assert left > 150, "room for the names"


def test_json_alone_on_stdout(tmp_path, capsys):
    argv = ["demo", "--output", str(tmp_path), "--scenes", "1", "--questions", "2", "--rounds", "1",
            "--methods", "random", "--retention", "0.5", "--no-pictures", "--json"]  # fmt: skip
    assert main(argv) == 0
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert err == "" and data["pictures"] == [] and data["questions"] == 2
    assert not list(tmp_path.rglob("*.png"))


def test_settings_are_checked_before_anything_runs():
    assert [s.key for s in demo.settings(["none", "pool"], [0.5, 1])] == [
        "none@1",
        "pool@0.5",
        "pool@1",
    ]
    with pytest.raises(VTCError, match="retention: got 2"):
        demo.settings(["pool"], [2])
    with pytest.raises(VTCError, match="did you mean 'pool'"):
        demo.settings(["poo"], [0.5])


def test_a_question_that_fails_is_an_error(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(Loaded, "answer", lambda self, inputs, **generation: 1 / 0)
    argv = ["demo", "--output", str(tmp_path), "--scenes", "1", "--methods", "pool", "--json"]
    assert main(argv) == 1
    assert "none@1 about test-20-00000-00: ZeroDivisionError" in capsys.readouterr().err


def test_ratio_is_taken_round_by_round():
    """A machine that is twice as slow in one round must not show in the ratio."""
    ratio = timing.ratio([1.0, 2.0, 1.0], [2.0, 4.0, 2.0])
    assert (ratio.median, ratio.low, ratio.high, ratio.rounds) == (0.5, 0.5, 0.5, 3)
    assert timing.ratio([1.0], [4.0]) == timing.Ratio(0.25, 0.25, 0.25, 1)


def test_interleaved_alternates_and_leaves_out_the_warm_up():
    calls: list[str] = []

    def case(name):
        return lambda: calls.append(name) or len(calls)

    times = timing.interleaved({"a": case("a"), "b": case("b")}, 2)
    assert calls == ["b", "a", "a", "b", "b", "a"]
    assert times == {"a": [3, 6], "b": [4, 5]}
