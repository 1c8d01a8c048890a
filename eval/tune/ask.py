"""Asks a model for the search: answers on disk, and what they say image by image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vtc.errors import VTCError
from vtc.eval.accuracy.runner import Runner, batches
from vtc.eval.common.loading import Loaded
from vtc.eval.common.records import Answer, Lines, answer_files, read_answers
from vtc.eval.common.settings import FULL, Setting
from vtc.eval.scoring.exact import exact_match
from vtc.eval.suites.base import Item, Suite
from vtc.eval.tune.costs import Costs
from vtc.eval.tune.promise import Points
from vtc.eval.tune.questions import ByImage
from vtc.eval.tune.space import Candidate
from vtc.openings import opening

if TYPE_CHECKING:
    from vtc.eval.tune.by_question import Table

#: share of failed rows in the first round above which a setting counts as one that cannot run
BROKEN = 0.5
FILE = "answers.jsonl"


class Scorer(Suite):
    """A suite in which "agreement" is scored later, by what the full model says, and "divergence" is
    what the answer itself tells."""

    def __init__(self, suite: Suite, quality: str) -> None:
        self.suite, self.quality = suite, quality
        self.max_new_tokens = suite.max_new_tokens  # type: ignore[misc]  # of this suite

    def items(self) -> Sequence[Item]:
        return self.suite.items()

    def score(self, item: Item, prediction: str) -> float:
        if self.quality == "answers":
            return self.suite.score(item, prediction)
        return 1.0

    def facts(self) -> dict[str, Any]:
        return self.suite.facts()


class Asker(Runner):
    """A runner whose settings have their own positions."""

    def positions_of(self, setting: Setting) -> str:
        """As of the base class."""
        return setting.positions if isinstance(setting, Candidate) else self.positions


@dataclass
class Asked:
    """Answers of one model to one user's questions: what `search.Answers` asks for.

    Attributes:
        loaded: the model.
        suite: of the questions.
        questions: by image.
        quality: "answers", "agreement" or "divergence".
        costs: what settings cost.
        folder: where answers are kept.
        batch_size: questions that go through the model together.
        advance: is told how many rows were answered.
        expected: is told how many there will be at most, again where larger budgets come back.
    """

    loaded: Loaded
    suite: Suite
    questions: ByImage
    quality: str
    costs: Costs
    folder: Path
    batch_size: int = 8
    advance: Callable[[int], Any] = lambda count: None
    expected: Callable[[int], Any] = lambda count: None
    rows: dict[str, dict[str, Answer]] = field(default_factory=dict, init=False)
    refused: dict[str, str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        from vtc.eval.tune.divergence import DivergenceAsker

        kind = DivergenceAsker if self.quality == "divergence" else Asker
        scorer = Scorer(self.suite, self.quality)
        self.runner: Asker = kind(self.loaded, scorer, {})
        if isinstance(self.runner, DivergenceAsker):
            self.runner.full = self._full
            self.batch_size = 1  # answers differ in length
        self.rows = defaultdict(dict)
        for answer in read_answers(self.folder) if answer_files(self.folder) else ():
            if answer.error is None:
                self.rows[answer.setting][answer.item] = answer
        self.searching, self.seen = True, set[str]()
        self.asked = self.most = 0

    def prepare(
        self, candidates: Sequence[Candidate], defaults: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Make every method and put it on the model once; what the model cannot have is noted."""
        methods = dict(self.runner.methods)
        self.runner.methods = methods
        for candidate in candidates:
            try:
                methods[candidate.key] = candidate.create(defaults)
                self.runner.check([candidate])
            except VTCError as error:
                self.refused[candidate.key] = str(error)

    def ask(self, candidates: Sequence[Candidate], images: Sequence[str]) -> None:
        """The full model and all of `candidates` on the questions about `images`. Rows that failed
        are asked again by the next run, not in this one."""
        able = [c for c in candidates if c.key not in self.refused]
        settings: list[Setting] = [FULL, *able]
        items = [item for image in images for item in self.questions.items[image]]
        done = {(key, item) for key, rows in self.rows.items() for item in rows}
        keys = [setting.key for setting in settings]
        left = sum((key, item.id) not in done for key in keys for item in items)
        self.expect(self.asked + left)
        lines = Lines(self.folder / FILE)
        try:
            for batch in batches(items, self.batch_size, done, keys):
                for answers in self.runner.ask(batch, settings, done):
                    lines.write(*(answer.line() for answer in answers))
                    for answer in answers:
                        self.rows[answer.setting][answer.item] = answer
                    self.asked += len(answers)
                    self.advance(len(answers))
        finally:
            lines.close()
        for candidate in able:
            self._note_broken(candidate)
        if self.searching:
            self.seen = {item.id for item in items}
            able = [c for c in able if c.key not in self.refused]
            self.costs.measure(self.runner, able, [self.questions.items[i][0] for i in images])

    def expect(self, rows: int) -> None:
        """Say that at least so many rows will have been asked."""
        if rows > self.most:
            self.most = rows
            self.expected(rows)

    def points(self, candidate: Candidate, images: Sequence[str]) -> Points:
        """By image. Questions that the full model could not be asked are left out; one that the
        setting alone fails on is a wrong answer."""
        found = []
        for image in images:
            pairs = [
                self._pair(candidate, item)
                for item in self.questions.items[image]
                if self._full(item.id) is not None
            ]
            if pairs:
                mean = np.mean(pairs, axis=0)
                found.append((mean[0], mean[1], self.questions.weight(image)))
        setting, full, weight = np.array(found, dtype=float).reshape(-1, 3).T
        return Points(setting, full, weight)

    def table(self, candidates: Sequence[Candidate], images: Sequence[str]) -> Table:
        """What the questions about some images scored at all budgets of one method, and of the full
        model. Those that the full model could not be asked, or a budget, are left out.

        Args:
            candidates: of one family, small budgets first, that were asked.
        """
        from vtc.eval.tune.by_question import Table

        found, names = [], []
        for name in images:
            for item in self.questions.items[name]:
                full, rows = (
                    self._full(item.id),
                    [self.rows[c.key].get(item.id) for c in candidates],
                )
                if full is None or any(row is None or row.tokens is None for row in rows):
                    continue
                pairs = [self._pair(candidate, item) for candidate in candidates]
                scores = [*(score for score, _ in pairs), pairs[0][1]]
                counts = [row.tokens for row in rows if row is not None]
                whole = rows[0].tokens_full if rows[0] is not None else None
                found.append((scores, [*counts, whole], opening(item.prompt)))
                names.append(name)
        kept, index = np.unique(names, return_inverse=True)
        return Table(
            budgets=np.array([*(c.budget for c in candidates), 1.0]),
            scores=np.array([each for each, _, _ in found]).T,
            tokens=np.array([each for _, each, _ in found], dtype=float).T,
            openings=np.array([each for _, _, each in found]),
            image=index,
            weight=np.array([self.questions.weight(name) for name in kept]),
        )

    def cost(self, candidate: Candidate) -> float:
        """Full model = 1."""
        if self.costs.kind == "tokens":
            return self.tokens(candidate)
        return self.costs.of(candidate)

    def dear(self, candidate: Candidate) -> bool:
        """Whether it surely costs no less than the full model."""
        if self.costs.kind == "tokens":
            return self.tokens(candidate) >= 1
        return self.costs.dear(candidate)

    def tokens(self, candidate: Candidate) -> float:
        """Visual tokens that enter a layer of the language model, on average, as a share of all; of
        the search's last round, so that a run that goes on decides as it did before."""
        known = self.rows[candidate.key]
        rows = [known[i] for i in self.seen & known.keys() if known[i].tokens is not None]
        whole = sum(a.tokens_full or 0 for a in rows)
        return sum(a.tokens or 0 for a in rows) / whole if whole else float("nan")

    def trouble(self, candidate: Candidate) -> str:
        """Why it cannot run."""
        return self.refused.get(candidate.key, "")

    def score(self, images: Sequence[str]) -> float:
        """Mean score of the full model, nan without right answers."""
        items = [item for image in images for item in self.questions.items[image]]
        rows = [self._full(item.id) for item in items]
        scores = [row.score for row in rows if row is not None and row.score is not None]
        return sum(scores) / len(scores) if scores else float("nan")

    def _full(self, item: str) -> Answer | None:
        row = self.rows[FULL.key].get(item)
        return row if row is not None and row.error is None else None

    def _pair(self, candidate: Candidate, item: Item) -> tuple[float, float]:
        """Scores of the setting and of the full model on a question."""
        full, row = self._full(item.id), self.rows[candidate.key].get(item.id)
        assert full is not None
        base = (full.score or 0.0) if self.quality == "answers" else 1.0
        if row is None or row.error is not None or row.score is None:
            return 0.0, base
        if self.quality == "answers":
            return row.score, base
        if self.quality == "divergence":
            return max(0.0, 1 - float(row.prediction or 1)), base
        return exact_match(row.prediction or "", full.prediction or ""), base

    def _note_broken(self, candidate: Candidate) -> None:
        rows = list(self.rows[candidate.key].values())
        failed = [row for row in rows if row.error is not None]
        if rows and len(failed) > BROKEN * len(rows):
            reason = failed[0].error or ""
            self.refused[candidate.key] = f"{len(failed)} of {len(rows)} questions failed: {reason}"
