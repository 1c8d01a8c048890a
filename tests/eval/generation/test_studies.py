"""Studies: whole rows, continuing, summaries that do not overclaim, the page; every study runs."""

import csv
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vtc import VTCError

for package in ("omegaconf", "accelerate", "skimage", "matplotlib", "vector_quantize_pytorch"):
    pytest.importorskip(package)

from vtc.discrete import CodeSpace, create_generator  # noqa: E402
from vtc.eval.generation.page import write_page  # noqa: E402
from vtc.eval.generation.studies import NAMES, load_study, rollout  # noqa: E402
from vtc.eval.generation.studies.base import (  # noqa: E402
    Metric,
    Study,
    execute,
    markdown,
    read_rows,
    summarise,
    values,
)


def study(calls: list, offset: float = 1.0) -> Study:
    def run(case: dict, settings: dict, seed: int, pictures: Path | None) -> dict[str, Any]:
        calls.append((case["add"], seed, pictures is not None))
        return {"score": case["add"] + 0.1 * seed, "curve": [1, 2]}

    def figure(rows: list, path: Path) -> None:
        from vtc.eval.generation.pictures import pyplot, write

        write(pyplot().figure(), path)

    return Study(
        name="quantizers",
        title="A title",
        question="Which?",
        settings={"offset": offset},
        cases={"A": {"add": 1.0}, "B": {"add": 0.0}},
        run=run,
        metrics=(Metric("score", "score", 1),),
        compare=(("score", "A", "B"),),
        figure=figure,
        effects=(("score", "B"),),
        limits=("It says little.",),
    )


def test_a_stopped_study_goes_on_and_other_settings_start_anew(tmp_path: Path) -> None:
    calls: list = []
    rows = execute(study(calls), tmp_path, range(2))
    assert calls == [(1.0, 0, True), (0.0, 0, True), (1.0, 1, False), (0.0, 1, False)]
    assert [(r["case"], r["seed"]) for r in rows] == [("A", 0), ("A", 1), ("B", 0), ("B", 1)]
    more = execute(study(calls), tmp_path, range(3))
    assert calls[4:] == [(1.0, 2, False), (0.0, 2, False)] and len(more) == 6
    execute(study(calls, offset=2.0), tmp_path, range(1))
    assert len(calls) == 8
    with (tmp_path / "quantizers.jsonl").open("a") as file:
        file.write('{"case": "A", "se')
    with pytest.raises(VTCError, match="line 9 .* no finished run"):
        read_rows(study(calls), tmp_path / "quantizers.jsonl")


def test_the_summary_says_what_the_seeds_support(tmp_path: Path) -> None:
    one = study([])
    summary = summarise(one, execute(one, tmp_path, range(5)), tmp_path)
    saved = json.loads((tmp_path / "quantizers.json").read_text())
    assert saved == json.loads(json.dumps(summary))
    assert summary["table"][0]["score"]["mean"] == pytest.approx(1.2)
    difference, effect = summary["reading"]
    assert "A minus B: +1.0 [+1.0, +1.0], larger in 5 of 5 seeds." in difference
    assert "above 0 in 4 of 5 seeds" in effect and "do not tell" not in effect
    with (tmp_path / "quantizers.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 10 and lines[0]["score"] == "1.0" and "curve" not in lines[0]
    text = write_page(tmp_path).read_text()
    assert "A title" in text and "data:image/png;base64," in text and "It says little." in text
    assert "http" not in text.replace("http://www.w3.org", "")
    with pytest.raises(VTCError, match="no results"):
        write_page(tmp_path / "none")


def test_names() -> None:
    for name in NAMES:
        one = load_study(name)
        assert one.name == name
        keys = {metric.key for metric in one.metrics}
        assert {key for key, _, _ in one.compare} | {key for key, _ in one.effects} <= keys
        assert {case for _, *pair in one.compare for case in pair} <= set(one.cases)
    with pytest.raises(VTCError, match="did you mean 'cells'"):
        load_study("cell")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_study_runs_with_few_steps(name: str, tmp_path: Path) -> None:
    one = load_study(name)
    settings = {
        key: {**value, "steps": 3} if key == "train" or "steps" in str(value) else value
        for key, value in one.settings.items()
    }
    short = dataclasses.replace(one, settings=settings)
    summary = summarise(short, execute(short, tmp_path, range(1)), tmp_path)
    assert len(summary["table"]) == len(one.cases)
    for metric in one.metrics:
        assert any(metric.key in row for row in summary["table"])
    for stem in one.pictures:
        assert (tmp_path / f"{stem}.png").is_file()
    assert write_page(tmp_path).stat().st_size > 10_000


def test_a_roll_out_equals_prediction_without_cache() -> None:
    torch.manual_seed(0)
    space = CodeSpace(9, (4,), (3, 3))
    model = create_generator("tiny_token_unify", space=space, dim=16, depth=1).eval()
    torch.nn.init.normal_(model.head.out.weight, std=0.5)
    ids, given = torch.randint(4, (5, 9, 1)), model.condition(torch.arange(5))
    made = rollout.roll_out(model, ids, given, 4)
    assert torch.equal(made[:, :4], ids[:, :4])
    slow = ids.clone()
    with torch.no_grad():
        for place in range(4, 9):
            slow[:, place] = model.next_logits(slow, given)[:, place].argmax(dim=-1)
    assert torch.equal(made, slow)
    # all at once: hidden tokens do not matter
    other = torch.cat([ids[:, :4], (ids[:, 4:] + 1) % 4], dim=1)
    assert torch.equal(
        rollout.at_once(model, ids, given, 4), rollout.at_once(model, other, given, 4)
    )
    images = torch.tensor([-1.0, -0.6, 0.1, 1.0]).repeat(16).view(1, 1, 8, 8).expand(-1, 3, -1, -1)
    codes = rollout.grey_codes(images)
    assert codes.unique().tolist() == [0, 2, 3]
    assert torch.equal(rollout.grey_codes(rollout.to_images(codes)), codes)


def test_the_docs_show_the_committed_results() -> None:
    root = Path(__file__).parents[3] / "docs"
    text = (root / "generation.md").read_text(encoding="utf-8")
    for name in NAMES:
        path = root / "results" / "generation" / f"{name}.json"
        summary = json.loads(path.read_text(encoding="utf-8"))
        assert markdown(summary) in text, name
        study = load_study(name)
        rows = read_rows(study, path.with_suffix(".jsonl"))
        assert len(rows) == summary["runs"] == len(study.cases) * study.seeds
        for entry, metric in itertools.product(summary["table"], study.metrics):
            found = values(list(rows.values()), entry["case"], metric.key)
            assert (metric.key in entry) == bool(found)
            if found:
                assert entry[metric.key]["mean"] == pytest.approx(sum(found) / len(found), abs=1e-4)
