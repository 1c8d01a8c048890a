"""The study of budgets by image and question, on answers that are drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vtc.eval.per_image import policies, study
from vtc.eval.per_image.features import FEATURES
from vtc.eval.per_image.measure import Answered
from vtc.eval.per_image.replay import replay

BUDGETS = np.array([0.05, 0.1, 0.5, 1.0])
#: right answers at each budget
EASY, HARD = np.array([0.9, 1.0, 1.0, 1.0]), np.array([0.2, 0.3, 0.95, 1.0])


def answered(images: int = 60, each: int = 6, by_image: bool = False) -> Answered:
    """Half of the questions, or of the images, are hard; the question or the image shows it."""
    rng = np.random.default_rng(0)
    image = np.repeat(np.arange(images), each)
    hard = (image if by_image else np.arange(len(image))) % 2 == 1
    rates = np.where(hard, HARD[:, None], EASY[:, None])
    looks = rng.normal(size=(images, len(FEATURES)))[image]
    if by_image:
        looks[:, 0] = hard
    words = np.stack([hard & (not by_image), rng.random(len(image))], 1).astype(float)
    kind = np.where(hard, "hard", "easy")
    same = np.full(len(image), "same")
    return Answered(
        BUDGETS, rng.random(len(image)) < rates, np.outer(100 * BUDGETS, np.ones(len(image))), image,
        kind if by_image else same, same if by_image else kind, same if by_image else kind,
        looks, words,
    )  # fmt: skip


@pytest.mark.parametrize("by_image", [False, True])
def test_who_knows_saves_and_who_does_not_saves_nothing(
    monkeypatch: pytest.MonkeyPatch, by_image: bool
) -> None:
    monkeypatch.setattr(study, "DRAWS", 20)
    rows = study.study(answered(by_image=by_image))
    at = {row["policy"]: row for row in rows if row["quality"] == 0.95}
    knows = ["kind of scene, told", "ridge: image", "ridge: patches"]
    others = ["kind of question, told", "first two words of the question", "ridge: question"]
    if not by_image:
        knows, others = others, knows
    for name in knows:
        assert at[name]["saved"] > 0.25 and at[name]["low"] > 0.15, name
    for name in others:
        assert abs(at[name]["saved"]) < 0.2, name
    assert at["hindsight, by question"]["saved"] >= at["hindsight, by image"]["saved"] > 0.1
    assert at["hindsight, by question"]["saved"] > 0.25


def test_the_cost_at_a_quality_by_hand() -> None:
    """Between two budgets by a straight line."""
    one = Answered(
        BUDGETS, np.array([[0, 0], [1, 0], [1, 1], [1, 1]], dtype=bool),
        np.outer([5.0, 10, 50, 100], [1, 1]), np.array([0, 1]), *[np.array(["a", "a"])] * 3,
        np.zeros((2, len(FEATURES))), np.zeros((2, 1)),
    )  # fmt: skip
    curve = study.Curve(one, None)
    assert curve.cost(0.5, np.ones((1, 2)))[0] == pytest.approx(0.1)
    assert curve.cost(0.75, np.ones((1, 2)))[0] == pytest.approx(0.3)
    assert np.isnan(curve.cost(1.1, np.ones((1, 2)))[0])


def test_replayed_the_command_finds_what_openings_save() -> None:
    """Both runs promise something, and shares by question are what is promised where they save."""
    one, many, taken = replay(answered(150), 0.9, seed=0, shares=(0.5, 0.1, 0.05))
    assert one == pytest.approx(0.5) and taken
    assert many == pytest.approx(0.3, abs=0.03)
    one, many, taken = replay(answered(150, by_image=True), 0.9, seed=0, shares=(0.5, 0.1, 0.05))
    assert one == many == pytest.approx(0.5) and not taken


def test_what_is_kept_reads_the_same(tmp_path: Path) -> None:
    one = answered(4)
    one.save(tmp_path / "answers.npz")
    again = Answered.load(tmp_path / "answers.npz")
    assert (again.right == one.right).all() and (again.opening == one.opening).all()


def test_dear_tokens_leave_the_smallest_budget() -> None:
    one = answered(10)
    scores = policies.grouped(one, one.question)
    assert (policies.choose(scores, one.tokens, 1e6) == 0).all()
    assert (one.budgets[policies.choose(scores, one.tokens, 1e-6)] >= 0.1).all()
