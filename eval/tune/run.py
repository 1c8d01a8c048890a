"""`tune`: the cheapest setting that keeps a target, on the user's own questions."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vtc.errors import VTCError, nearest
from vtc.eval.accuracy.run import no_manifest, same
from vtc.eval.common import manifest
from vtc.eval.common.loading import Loaded
from vtc.eval.common.records import MANIFEST, answer_files, read_manifest, write_manifest
from vtc.eval.suites.base import Suite
from vtc.eval.tune import space
from vtc.eval.tune.ask import Asked
from vtc.eval.tune.by_question import add_by_question
from vtc.eval.tune.costs import Costs
from vtc.eval.tune.place import check_output, folder_of
from vtc.eval.tune.promise import check_target, highest, needed
from vtc.eval.tune.questions import ByImage, Questions
from vtc.eval.tune.result import Tuned
from vtc.eval.tune.search import KEPT, TRIES, Search, Standing, rounds

QUALITIES = ("answers", "agreement", "divergence")
LEAST = 24  # images of the search
SHARE = 1 / 3  # of the images that the search has


@dataclass
class Tuning:
    """One model, one set of questions, one target.

    Attributes:
        loaded: the model.
        suite: the questions.
        target: quality to reach, in (0, 1).
        candidates: what is tried.
        quality: one of `QUALITIES`; None is "answers" where there are some, else "agreement".
        cost: one of `costs.KINDS`.
        folder: of the run, which can go on; None for one that is not kept.
        defaults: fields of methods that come with the model.
        limit: how many questions of the suite; None for all.
        batch_size: questions that go through the model together.
        seed: of the split and the order of images.
        by_question: whether shares by how questions begin are fitted too, see `by_question`.
        command: for the manifest.
        told: is given what is going on, a line at a time.
        advance: is told how many calls were made.
        expected: is told how many there will be at most.
    """

    loaded: Loaded
    suite: Suite
    target: float
    candidates: Sequence[space.Candidate]
    quality: str | None = None
    cost: str = "time"
    folder: Path | None = None
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    limit: int | None = None
    batch_size: int = 8
    seed: int = 0
    by_question: bool = False
    command: str = "vtc.tune"
    told: Callable[[str], None] = lambda line: None
    advance: Callable[[int], Any] = lambda count: None
    expected: Callable[[int], Any] = lambda count: None

    def run(self) -> Tuned:
        """Search, confirm, and say what was found.

        Raises:
            VTCError: a value out of range, questions that cannot be read, too few images for a proof,
                or a folder that holds another run.
        """
        began = time.monotonic()
        check_target(self.target)
        questions = ByImage.of(self.suite, self.limit)
        quality = quality_of(self.quality, questions)
        search, unseen = check_enough(questions, self.target, self.seed)
        with self._place() as folder:
            costs = Costs(self.cost, folder, lambda: None)
            earlier = self._manifest(folder, questions, quality)
            asked = Asked(
                self.loaded, self.suite, questions, quality, costs, folder,
                self.batch_size, self.advance, self.expected,
            )  # fmt: skip
            asked.prepare(self.candidates, self.defaults)
            able = [c for c in self.candidates if c.key not in asked.refused]
            self._say(questions, search, unseen, able)
            asked.expect(self._rows(questions, search, unseen, len(able)))
            job = Search(
                asked,
                self.target,
                search,
                unseen,
                [Standing(c) for c in self.candidates],
                self.told,
            )
            job.run()
            if self.by_question:
                add_by_question(job, asked, self.defaults)
            self._warn(asked, search, len(unseen))
            asked.searching = False
            # noted before the first look: a run that is stopped has looked as well
            self._note(folder, confirmed=[s.candidate.key for s in job.chain()])
            found = job.confirm()
            seconds = time.monotonic() - began
            self._note(folder, seconds=round(seconds, 1))
            return Tuned.of(self, job, found, asked, earlier, seconds)

    @property
    def tried(self) -> list[str]:
        """What is tried, for the manifest."""
        more = ["by question"] if self.by_question else []
        return [*sorted(c.key for c in self.candidates), *more]

    @contextlib.contextmanager
    def _place(self) -> Iterator[Path]:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            yield self.folder
            return
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)

    def _manifest(self, folder: Path, questions: ByImage, quality: str) -> list[dict[str, Any]]:
        """Check or write the manifest; returns the sessions before this one."""
        model = self.loaded.model
        facts: dict[str, Any] = {
            "kind": "tune",
            "model": manifest.model(self.loaded.name, model),
            "suite": {"name": self.suite.name, **manifest.plain(self.suite.facts())},
            "settings": [],
            "generation": {
                "max_new_tokens": self.suite.max_new_tokens,
                "quality": quality,
                "split_seed": self.seed,
                "limit": self.limit,
                "defaults": manifest.plain(self.defaults),
            },
            "code": manifest.code(),
            "sessions": [],
        }
        if (folder / MANIFEST).exists():
            before = read_manifest(folder)
            same(folder, before, facts)
            facts = before
        elif answer_files(folder):
            raise no_manifest(folder)
        earlier = list(facts["sessions"])
        session = {
            "command": self.command,
            "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "target": self.target,
            "cost": self.cost,
            "candidates": self.tried,
            **manifest.machine(self.loaded.device, model),
        }
        facts["sessions"].append(session)
        write_manifest(folder, facts)
        return earlier

    def _note(self, folder: Path, **values: Any) -> None:
        """Add to what the manifest says of this session."""
        facts = read_manifest(folder)
        facts["sessions"][-1].update(values)
        write_manifest(folder, facts)

    def _say(
        self,
        questions: ByImage,
        search: Sequence[str],
        unseen: Sequence[str],
        able: Sequence[space.Candidate],
    ) -> None:
        count = sum(len(items) for items in questions.items.values())
        refused = len(self.candidates) - len(able)
        self.told(
            f"{count} questions about {len(search) + len(unseen)} images: {len(search)} to search, "
            f"{len(unseen)} to confirm (a proof of {self.target:g} takes "
            f"{needed(self.target, len(search))} at least); {len(able)} settings"
            + (f", and {refused} that this model cannot have" if refused else "")
        )

    def _rows(
        self, questions: ByImage, search: Sequence[str], unseen: Sequence[str], settings: int
    ) -> int:
        """Answers that are asked for at most."""
        size = {image: len(items) for image, items in questions.items.items()}
        total = sum(size[i] for i in search) + (1 + TRIES) * sum(size[i] for i in unseen)
        seen = 0
        for count in rounds(len(search)):
            total += settings * sum(size[i] for i in search[seen:count])
            settings, seen = max(KEPT, (settings + 1) // 2), count
        return total

    def _warn(self, asked: Asked, search: Sequence[str], unseen: int) -> None:
        """Say so where the full model is wrong so often that the images cannot prove the target."""
        score = asked.score(search) if asked.quality == "answers" else 1.0
        if score == 0:
            self.told("the full model gets nothing right, and where it is wrong nothing is proved")
        elif score < 1 and needed(self.target, len(search), score) > unseen:
            self.told(
                f"the full model is right in {score:.0%} of the answers, and where it is wrong nothing "
                f"is proved: {needed(self.target, len(search), score)} images to confirm would be needed"
            )


def quality_of(wish: str | None, questions: ByImage) -> str:
    """What is to be kept, one of `QUALITIES`; the default of these questions for None.

    Raises:
        VTCError: there is no such quality, or the questions have no answers for it.
    """
    if wish is None:
        return "answers" if questions.answered else "agreement"
    if wish not in QUALITIES:
        raise VTCError(
            f"quality: got {wish!r}, allowed are {', '.join(QUALITIES)}{nearest(wish, QUALITIES)}"
        )
    if wish == "answers" and not questions.answered:
        raise VTCError("quality: got 'answers', but the questions have none, allowed are "
                       "agreement and divergence")  # fmt: skip
    return wish


def split(questions: ByImage, seed: int) -> tuple[list[str], list[str]]:
    """Images of the search and images to confirm, each in random order; the same for the same data."""
    names = sorted(questions.items)
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    count = min(len(order), max(LEAST, round(SHARE * len(order))))
    return order[:count], order[count:]


def check_enough(questions: ByImage, target: float, seed: int) -> tuple[list[str], list[str]]:
    """`split`, where there are images enough for a proof.

    Raises:
        VTCError: there are not; it says how many it takes.
    """
    search, unseen = split(questions, seed)
    least = needed(target, max(len(search), LEAST))
    if len(search) >= LEAST and len(unseen) >= least:
        return search, unseen
    most = highest(len(unseen), len(search)) if len(search) >= LEAST else 0.0
    can = f", or a target of {most:g} or less" if most else ""
    raise VTCError(
        f"data: {len(search) + len(unseen)} images are too few to prove {target:g}; give "
        f"{enough(target)} at least{can}. It takes {least} images that the search never saw even where "
        "a setting loses nothing on them; questions about one image count together"
    )


def enough(target: float) -> int:
    """How many images a proof of `target` takes at least, those of the search among them."""
    images = LEAST + needed(target, LEAST)
    while True:
        search = max(LEAST, round(SHARE * images))
        short = needed(target, search) - (images - search)
        if short <= 0:
            return images
        images += short  # at least so many, since the search gets some of them


def tune(
    model: Any,
    processor: Any,
    data: str | Path | Sequence[Mapping[str, Any]] | Suite,
    *,
    target: float = 0.99,
    quality: str | None = None,
    cost: str = "time",
    methods: Sequence[str] | None = None,
    retentions: Sequence[float] | None = None,
    tokens: Sequence[int] = (),
    positions: Sequence[str] = ("original",),
    options: Mapping[str, Mapping[str, Any]] | None = None,
    metric: str = "exact",
    max_new_tokens: int = 32,
    batch_size: int = 8,
    output: str | Path | None = None,
    seed: int = 0,
    by_question: bool = False,
) -> Tuned:
    """Find the cheapest setting whose quality is at least `target`, on your own questions.

        result = vtc.tune(model, processor, "questions.jsonl", target=0.99, output="vtc.yaml")
        vtc.apply_from_config(model, result.config)

    Args:
        model, processor: as for `vtc.compress`; the model is left as it was.
        data: a JSONL file of questions, the same as dictionaries, or a `vtc.eval.suites.Suite`.
        target: share of the full model's quality to keep, in (0, 1).
        quality: "answers", the metric relative to the full model's; "agreement" with the full model's
            own answers; "divergence", 1 less the Jensen-Shannon divergence of the distributions. By
            default "answers" where there are some, else "agreement".
        cost: what is to be small: "time" to the first token, "tokens" or "memory".
        methods, retentions, tokens, positions, options: what is tried, see `docs/tune.md`.
        metric: of answers to own questions: exact, contains, anls, relaxed or vqa.
        max_new_tokens: how long an answer to own questions may get.
        batch_size: questions that go through the model together.
        output: a file for the configuration; a folder beside it keeps the run, which can go on, and
            its page. None writes nothing.
        seed: of the split into images to search and images to confirm.
        by_question: whether shares by how questions begin are fitted and confirmed too.

    Returns:
        What was found: `config`, `promised`, `quality`, `bound`, `standings`.

    Raises:
        VTCError: a value out of range, questions that cannot be read, too few images for a proof, or a
            folder that holds another run.
    """
    check_target(target)
    if not isinstance(batch_size, int) or batch_size < 1:
        raise VTCError(f"batch_size: got {batch_size!r}, allowed are whole numbers >= 1")
    where = None if output is None else Path(output)
    if where is not None:
        check_output(where)
    candidates = space.plan(methods, retentions, tokens, positions, options)
    suite = data if isinstance(data, Suite) else Questions(data, metric, max_new_tokens)
    name = getattr(model, "name_or_path", "") or type(model).__name__
    loaded = Loaded(name, model, processor, model.device)
    tuning = Tuning(
        loaded, suite, target, candidates, quality, cost,
        None if where is None else folder_of(where), vtc_defaults(model),
        batch_size=batch_size, seed=seed, by_question=by_question,
    )  # fmt: skip
    with _bare(model), _padding(processor):
        result = tuning.run()
    if where is not None:
        result.write(where)
    return result


@contextlib.contextmanager
def _bare(model: Any) -> Iterator[None]:
    """Without the compression that is on the model, which is back behind it: the full model is what
    settings are compared with."""
    import vtc

    with vtc.compress(model, "none"):
        vtc.remove(model)
        yield


@contextlib.contextmanager
def _padding(processor: Any) -> Iterator[None]:
    """Batches change how a tokenizer pads; as it was behind it."""
    tokenizer = getattr(processor, "tokenizer", processor)
    side, token = tokenizer.padding_side, tokenizer.pad_token
    try:
        yield
    finally:
        tokenizer.padding_side, tokenizer.pad_token = side, token


def vtc_defaults(model: Any) -> Mapping[str, Mapping[str, Any]]:
    """What the model brings for methods."""
    import vtc

    return vtc.model_defaults(model)
