"""Rounds, halving, order of proofs: on drawn answers whose truth is known."""

from __future__ import annotations

import pytest

from tests.tune.synthetic import Drawn, World, tuned
from vtc.eval.tune.search import Search, Standing, looks, rounds
from vtc.eval.tune.space import Candidate

BUDGETS = (0.75, 0.5, 0.25, 0.1, 0.05)
WORLD = World(images=240, questions=2, linked=0.0)


def family(name: str, *quality: float) -> dict[Candidate, float]:
    """Settings of one method, large budgets first."""
    return {Candidate(name, b): q for b, q in zip(BUDGETS, quality, strict=False)}


def test_the_cheapest_that_keeps_the_target_is_found() -> None:
    truth = {**family("good", 1.0, 1.0, 1.0, 0.6, 0.3), **family("poor", 1.0, 0.7, 0.5, 0.3, 0.2)}
    found, search, _ = tuned(WORLD, truth, 0.9)
    assert found is not None and found.candidate == Candidate("good", 0.25)
    assert found.low is not None and 0.9 <= found.low <= found.quality
    assert all(standing.lost for standing in search.standings if standing is not found)


def test_smaller_budgets_than_one_that_falls_short_are_not_asked_again() -> None:
    truth = family("poor", 1.0, 0.3, 0.3, 0.3, 0.3)
    _, search, answers = tuned(WORLD, truth, 0.9)
    least = search.standings[-1]
    assert least.images == rounds(80)[0]
    assert sum(key == least.candidate.key for key, _ in answers.asked) == least.images


def test_shares_and_counts_are_not_ordered_by_one_another() -> None:
    """Ten tokens are not more than half of them."""
    share, count = Candidate("m", 0.5), Candidate("m", None, tokens=10)
    truth = {share: 1.0, count: 0.3}
    found, search, _ = tuned(WORLD, truth, 0.9, costs={share: 0.5, count: 0.02})
    assert found is not None and found.candidate == share
    assert [s.lost for s in search.standings] == ["", "falls short of the target"]


def test_bad_settings_cost_little() -> None:
    many = {c: q for i in range(10) for c, q in family(f"m{i}", 1.0, 0.9, 0.5, 0.3, 0.1).items()}
    _, _, answers = tuned(WORLD, many, 0.9)
    assert len(answers.asked) < 0.25 * len(many) * WORLD.images


def test_a_larger_budget_comes_back_where_the_smaller_ones_fall_short() -> None:
    """Few images rank the cheap settings first; all of them turn out to fall short."""
    truth = {c: q for i in range(8) for c, q in family(f"m{i}", 1.0, 0.88, 0.87).items()}
    world = World(images=300, questions=1, linked=0.0)
    found = [tuned(world, truth, 0.95, seed)[0] for seed in range(10)]
    budgets = [f.candidate.budget for f in found if f is not None]
    assert len(budgets) >= 6 and set(budgets) == {0.75}


def test_what_cannot_run_or_saves_nothing_is_out() -> None:
    truth = {**family("broken", 1.0), **family("dear", 1.0), **family("fine", 1.0)}
    broken, dear, fine = truth
    found, search, answers = tuned(
        WORLD, truth, 0.9, costs={dear: 1.1, fine: 0.9}, refused={broken: "no CLS token"}
    )
    assert found is not None and found.candidate == fine
    assert {s.candidate: s.lost for s in search.standings} == {
        broken: "no CLS token", dear: "saves nothing against the full model", fine: "",
    }  # fmt: skip


def test_a_cost_that_nobody_could_measure_is_said() -> None:
    truth = family("m", 1.0)
    found, search, _ = tuned(WORLD, truth, 0.9, costs=dict.fromkeys(truth, float("nan")))
    assert found is None and search.standings[0].lost == "its cost could not be measured"


def test_nothing_reaches_the_target_and_the_best_is_named() -> None:
    truth = {**family("one", 0.7, 0.6), **family("two", 0.5, 0.4)}
    found, search, _ = tuned(WORLD, truth, 0.9)
    assert found is None
    tried = [s for s in search.standings if s.confirmed is not None]
    assert [s.candidate for s in tried] == [Candidate("one", 0.75)]
    assert tried[0].low is not None and tried[0].low < 0.9 and not tried[0].promised


def test_nothing_runs() -> None:
    truth = family("broken", 1.0, 1.0)
    found, search, _ = tuned(WORLD, truth, 0.9, refused=dict.fromkeys(truth, "no"))
    assert found is None and not any(s.confirmed for s in search.standings)


def test_the_search_never_sees_what_confirms() -> None:
    truth = family("good", 1.0, 0.97, 0.9, 0.5, 0.3)
    answers = Drawn(WORLD, truth, 1)
    names = [str(i) for i in range(WORLD.images)]
    search = Search(answers, 0.9, names[:80], names[80:], [Standing(c) for c in truth])
    search.run()
    assert {image for _, image in answers.asked} <= set(names[:80])
    before = list(answers.asked)
    search.confirm()
    assert {image for _, image in answers.asked[len(before) :]} <= set(names[80:])


def test_proofs_stop_at_the_first_that_fails() -> None:
    """Fixed sequence: what is cheaper than one that is not proved is not tried."""
    truth = family("m", 0.999, 0.93, 0.92, 0.91)
    for seed in range(20):
        _, search, _ = tuned(WORLD, truth, 0.9, seed)
        tried = sorted((s for s in search.standings if s.confirmed), key=lambda s: -s.cost)
        held = [s.promised for s in tried]
        assert held == sorted(held, reverse=True) and held.count(False) <= 1


def test_it_stops_early_when_proved_and_when_hopeless() -> None:
    found, search, _ = tuned(WORLD, family("m", 1.0), 0.8)
    assert found is not None and found.confirmed is not None
    assert len(found.confirmed) < len(search.unseen) / 2
    _, search, _ = tuned(WORLD, family("m", 0.5), 0.95)
    (only,) = search.standings
    assert only.confirmed is not None and len(only.confirmed) < len(search.unseen) / 2


@pytest.mark.parametrize("images", [8, 9, 24, 100])
def test_rounds_and_looks(images: int) -> None:
    assert rounds(images)[-1] == images == looks(images)[-1]
    assert rounds(images) == sorted(set(rounds(images))) and rounds(100) == [8, 16, 32, 64, 100]
    assert looks(images) == sorted(set(looks(images))) and len(looks(images)) <= 8
