"""Pairs of settings out of accuracy runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.eval import synthetic
from vtc.errors import VTCError
from vtc.eval import paired
from vtc.eval.common.records import Answer


def run(folder: Path, settings: dict[str, np.ndarray], **facts: Any) -> Path:
    """A folder of answers to two questions about each image.

    Args:
        facts: entries of the manifest that are to be others.
    """
    folder.mkdir()
    made = synthetic.manifest([], 200, **facts)
    (folder / "run.json").write_text(json.dumps(made), encoding="utf-8")
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


def test_accuracies_are_those_of_the_questions_that_both_answered(tmp_path: Path) -> None:
    """One run asked the first questions only, and the suite gets harder."""
    scores = np.arange(200) < 100
    limited = {**synthetic.manifest([], 200)["suite"], "limit": 120, "items": 120}
    whole = run(tmp_path / "whole", {"a@0.1": scores})
    part = run(tmp_path / "part", {"b@0.1": scores[:120]}, suite=limited)
    (row,) = paired.paired([whole, part], [("a@0.1", "b@0.1")])
    assert row["questions"] == 120 and row["difference"]["value"] == 0
    assert row["accuracy"] == pytest.approx([100 / 120, 100 / 120])


OTHER = {
    "suite": {"name": "synthetic", "metric": "accuracy", "facts": {"seed": 2, "count": 200}},
    "model": {**synthetic.MODEL, "sha256": "ef" * 32},
    "generation": {"max_new_tokens": 9, "do_sample": False, "positions": "original"},
}


@pytest.mark.parametrize("part", OTHER)
def test_runs_of_other_questions_or_another_model_are_refused(tmp_path: Path, part: str) -> None:
    """The items have the same names."""
    first = run(tmp_path / "first", {"a@0.1": np.ones(200)})
    second = run(tmp_path / "second", {"b@0.1": np.ones(200)}, **{part: OTHER[part]})
    with pytest.raises(VTCError, match=f"runs 'first' and 'second' differ: {part}"):
        paired.paired([first, second], [("a@0.1", "b@0.1")])


def test_a_folder_without_a_run_is_named(runs: Any, tmp_path: Path) -> None:
    folders, _ = runs
    with pytest.raises(VTCError, match="gone'.*no readable run.json"):
        paired.paired([*folders, tmp_path / "gone"], [("strong@0.1", "weak@0.1")])


def test_the_command_writes_what_it_prints(
    runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders, _ = runs
    output = tmp_path / "paired.json"
    paired.main([*map(str, folders), "--pair", "strong@0.1", "weak@0.1", "--output", str(output)])
    (row,) = json.loads(output.read_text())
    assert f"{100 * row['difference']['value']:+.1f} [" in capsys.readouterr().out
