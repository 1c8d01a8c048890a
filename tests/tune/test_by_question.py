"""Shares by how a question begins: what is fitted, what it is said to score, and the promise."""

from __future__ import annotations

import numpy as np
import pytest

import vtc
from tests.tune.synthetic import Drawn, World
from vtc.eval.tune.by_question import LEAST, Asking, Table, curves, fit, held_out
from vtc.eval.tune.promise import PROOF, Points, evidence, stakes
from vtc.eval.tune.result import environment, plain_yaml
from vtc.eval.tune.search import Search, Standing
from vtc.eval.tune.space import Candidate

BUDGETS = (0.05, 0.1, 0.2, 0.5, 1.0)
#: how often a question is answered right at each budget, by its opening
EASY, HARD = (0.9, 1.0, 1.0, 1.0, 1.0), (0.3, 0.4, 0.5, 0.97, 1.0)


def drawn(images: int, seed: int, ways: dict[str, tuple[float, ...]], each: int = 3) -> Table:
    """Questions with these openings in turn; one that is right at a budget is right at larger ones."""
    rng = np.random.default_rng(seed)
    image = np.repeat(np.arange(images), each)
    names = np.array(list(ways))[np.arange(len(image)) % len(ways)]
    rates = np.array([ways[name] for name in names]).T
    tokens = np.outer(BUDGETS, np.full(len(image), 100.0))
    scores = (rng.random(len(image)) < rates).astype(float)
    return Table(np.array(BUDGETS), scores, tokens, names, image, np.ones(images))


def quality(shares: dict[str, float], ways: dict[str, tuple[float, ...]]) -> float:
    """The true quality of a table of shares."""
    rates = [ways[name][BUDGETS.index(shares.get(name, shares["*"]))] for name in ways]
    return sum(rates) / len(rates)


def test_what_needs_little_gets_little() -> None:
    ways = {"what color": EASY, "how many": HARD}
    found = fit(drawn(80, 0, ways), 0.95, 160, below=0.5)
    assert found is not None
    share = {name: found.shares.get(name, found.shares["*"]) for name in ways}
    assert share == {"what color": 0.1, "how many": 0.5}
    assert found.cost == pytest.approx(0.3, abs=0.02)
    assert found.seen.quality > 0.95


def test_nothing_is_found_where_openings_do_not_differ_or_nothing_is_saved() -> None:
    assert fit(drawn(80, 0, {"what color": HARD, "how many": HARD}), 0.95, 160, below=0.49) is None
    assert fit(drawn(80, 0, {"what color": EASY, "how many": HARD}), 0.95, 160, below=0.1) is None
    rare = drawn(LEAST - 1, 0, {f"what {n}": EASY for n in range(3)})
    assert set(curves(rare.scores, rare.openings)) == {"*"}


def test_what_is_expected_comes_from_other_images() -> None:
    """Where one image alone has an opening, its own answers have no say in its share."""
    table = drawn(40, 1, {"what color": EASY}, each=12)
    alone = table.image == 7
    table.openings[alone] = "how many"
    table.scores[:-1, alone] = 0.0
    picks = held_out(table)
    whole = curves(table.scores, table.openings)
    assert {"how many", "what color", "*"} == set(whole)
    for price, pick in picks.items():
        others = pick[alone]
        assert (others == others[0]).all(), price
    assert any((table.budgets[pick[alone]] < 1).all() for pick in picks.values())


def test_the_promise_holds_for_the_table_as_a_whole() -> None:
    """Fitted on some images and bet on with others, a table whose true quality is below the target is
    proved in 5 % of the runs at most."""
    ways = {"what color": (0.86, 0.9, 0.92, 0.93, 1.0), "how many": (0.75, 0.8, 0.84, 0.86, 1.0)}
    wrong = tried = 0
    for seed in range(200):
        found = fit(drawn(40, seed, ways, each=2), 0.9, 400, below=0.45)
        if found is None or quality(found.shares, ways) >= 0.9:
            continue
        tried += 1
        unseen, pick = drawn(400, 1000 + seed, ways, each=2), np.array(BUDGETS)
        shares = [found.shares.get(name, found.shares["*"]) for name in unseen.openings]
        scores = unseen.scores[np.searchsorted(pick, shares), np.arange(len(unseen.image))]
        wrong += evidence(unseen.points(scores), stakes(found.seen, 0.9), 0.9) >= PROOF
    assert tried >= 15
    assert wrong <= 3


def test_it_is_confirmed_behind_a_setting_with_one_share() -> None:
    """Likely and cheap as it is: where it fails, the other is promised still."""
    one, many = Candidate("divprune", 0.5), Asking("divprune", shares={"how many": 0.5, "*": 0.1})
    names = [str(n) for n in range(200)]
    for truth, promised in ((1.0, many), (0.5, one)):
        world = World(images=200, questions=2)
        answers = Drawn(world, {one: 1.0, many: truth}, 0, {one: 0.5, many: 0.2})
        job = Search(answers, 0.9, names[:60], names[60:], [Standing(one)])
        job.run()
        full = np.ones(60)
        job.standings.append(
            Standing(many, 60, Points(full, full, full), 0.2, 1.0, 1.0, after=True)
        )
        assert [s.candidate for s in job.chain()] == [one, many]
        found = job.confirm()
        assert found is not None and found.candidate == promised


def test_how_it_reads_as_a_configuration() -> None:
    candidate = Asking("divprune", shares={"how many": 0.7, "*": 0.12}, options={"scope": "tile"})
    assert candidate.key == 'divprune@question{"scope": "tile"}{*: 0.12, how many: 0.7}'
    assert candidate.label == "divprune at 12 to 70 % by question"
    config = candidate.config()
    assert vtc.CompressionConfig.from_sources(env=environment(config)) == config
    (method,) = candidate.create({})
    assert method.by_question
    assert "how many: 0.7" in plain_yaml(config)
