"""Pairs of settings out of accuracy runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vtc.errors import VTCError
from vtc.eval import paired
from vtc.eval.common.records import Answer


def run(folder: Path, settings: dict[str, np.ndarray]) -> Path:
    """A folder of answers to two questions about each image."""
    folder.mkdir()
    lines = [
        Answer(name, f"q{n}", f"image{n // 2}", "ab"[n % 2], ("x",), "x", float(score)).line()
        for name, scores in settings.items()
        for n, score in enumerate(scores)
    ]
    (folder / "answers.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> tuple[list[Path], dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    weak = rng.random(200) < 0.5
    told = {"weak@0.1": weak, "strong@0.1": weak | (rng.random(200) < 0.5), "twin@0.1": weak}
    first = run(tmp_path / "first", {"weak@0.1": told["weak@0.1"]})
    second = run(tmp_path / "second", {k: told[k] for k in ("strong@0.1", "twin@0.1")})
    return [first, second], told


def test_pairs_across_runs(runs: Any) -> None:
    folders, told = runs
    ahead, same = paired.paired(folders, [("strong@0.1", "weak@0.1"), ("twin@0.1", "weak@0.1")])
    assert ahead["accuracy"] == pytest.approx([told["strong@0.1"].mean(), told["weak@0.1"].mean()])
    assert ahead["difference"]["value"] == pytest.approx(
        told["strong@0.1"].mean() - told["weak@0.1"].mean()
    )
    assert ahead["verdict"] == "better" and ahead["clusters"] == 100
    assert same["difference"]["value"] == 0 and same["verdict"] == "none"


def test_one_kind_of_question(runs: Any) -> None:
    folders, told = runs
    (row,) = paired.paired(folders, [("strong@0.1", "weak@0.1")], ["b"])
    assert row["questions"] == 100
    assert row["accuracy"][1] == pytest.approx(told["weak@0.1"][1::2].mean())


def test_a_setting_that_is_not_there_is_told(runs: Any, tmp_path: Path) -> None:
    folders, _ = runs
    with pytest.raises(VTCError, match="pair: got 'strong@0.2', no run has it.*strong@0.1"):
        paired.paired(folders, [("strong@0.2", "weak@0.1")])
    with pytest.raises(SystemExit):
        paired.main([str(folders[0]), "--pair", "weak@0.1", "gone@0.1"])


def test_the_command_writes_what_it_prints(
    runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders, _ = runs
    output = tmp_path / "paired.json"
    paired.main([*map(str, folders), "--pair", "strong@0.1", "weak@0.1", "--output", str(output)])
    (row,) = json.loads(output.read_text())
    assert f"{100 * row['difference']['value']:+.1f} [" in capsys.readouterr().out
