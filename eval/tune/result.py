"""What tuning found: as values, as a configuration file, in words."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc.config import CompressionConfig
from vtc.errors import VTCError
from vtc.eval.common.records import write_whole
from vtc.eval.tune.costs import SAID
from vtc.eval.tune.place import folder_of
from vtc.eval.tune.promise import percent_down
from vtc.eval.tune.questions import Questions

if TYPE_CHECKING:
    from vtc.eval.tune.ask import Asked
    from vtc.eval.tune.run import Tuning
    from vtc.eval.tune.search import Search, Standing

QUALITY = {
    "answers": "score relative to the full model's",
    "agreement": "agreement with the full model's own answers",
    "divergence": "1 less the Jensen-Shannon divergence from the full model's distribution",
}


@dataclass(frozen=True)
class Tuned:
    """What was found.

    Attributes:
        target: quality that was asked for.
        promised: the cheapest setting that is proved to keep it; None when none is.
        best: `promised`, or the best setting where none is.
        standings: what became of every setting.
        quality_of, cost_of: what quality and cost are, names of `QUALITY` and `costs.KINDS`.
        metric: of the suite's answers.
        score: of the full model on the images of the search, nan without right answers.
        questions, searched, unseen: questions, images of the search, images to confirm.
        tokens: visual tokens by key of the setting, as a share of the full model's.
        spreads: median and quartiles of the measured cost, by key of the setting.
        cautions: what should be known of this result.
        left_out: questions that could not be read, with the reason.
        seconds: that it took.
        model, command: for the record.
    """

    target: float
    promised: Standing | None
    best: Standing | None
    standings: Sequence[Standing]
    quality_of: str
    cost_of: str
    metric: str
    score: float
    questions: int
    searched: int
    unseen: int
    tokens: Mapping[str, float]
    spreads: Mapping[str, tuple[float, float, float]]
    cautions: Sequence[str]
    left_out: Mapping[str, str]
    seconds: float
    model: str
    command: str
    folder: Path | None = field(default=None)

    @classmethod
    def of(
        cls,
        tuning: Tuning,
        job: Search,
        found: Standing | None,
        asked: Asked,
        earlier: Sequence[Mapping[str, Any]],
        seconds: float,
    ) -> Tuned:
        """Of a search that is over."""
        chain = [s for s in job.standings if s.confirmed is not None]
        best = found or max(chain, key=lambda s: s.low or 0.0, default=None)
        questions = asked.questions
        return cls(
            target=tuning.target,
            promised=found,
            best=best,
            standings=sorted(job.standings, key=_order),
            quality_of=asked.quality,
            cost_of=tuning.cost,
            metric=tuning.suite.metric,
            score=asked.score(job.images) if asked.quality == "answers" else math.nan,
            questions=sum(len(items) for items in questions.items.values()),
            searched=len(job.images),
            unseen=len(job.unseen),
            tokens={s.candidate.key: asked.tokens(s.candidate) for s in job.standings},
            spreads={
                s.candidate.key: asked.costs.spread(s.candidate)
                for s in job.standings
                if tuning.cost != "tokens"
            },
            cautions=_cautions(tuning, asked.quality, earlier, questions.left_out),
            left_out=questions.left_out,
            seconds=seconds,
            model=tuning.loaded.name,
            command=tuning.command,
            folder=tuning.folder,
        )

    @property
    def config(self) -> CompressionConfig:
        """The promised setting; method "none" when there is none, which leaves a model as it is."""
        return CompressionConfig() if self.promised is None else self.promised.candidate.config()

    @property
    def quality(self) -> float:
        """Of the best setting, as measured."""
        return math.nan if self.best is None else self.best.quality

    @property
    def bound(self) -> float:
        """One-sided 95 % lower bound of the best setting's quality; nan where there is none."""
        return math.nan if self.best is None or self.best.low is None else self.best.low

    def environment(self) -> dict[str, str]:
        """The same configuration as variables that servers read."""
        return environment(self.config)

    def front(self) -> list[Standing]:
        """Settings that were asked about and that none beats in both quality and cost, by cost."""
        found: list[Standing] = []
        known = [s for s in self.standings if s.seen is not None and not math.isnan(s.cost)]
        for standing in sorted(known, key=lambda s: (s.cost, -s.quality)):
            if not found or standing.quality > found[-1].quality:
                found.append(standing)
        return found

    def sentences(self) -> list[str]:
        """What was found, for people."""
        what, best = QUALITY[self.quality_of], self.best
        if best is None:
            return [f"No setting runs and costs less; the full model stays. Why: {self._why()}."]
        size = len(best.confirmed) if best.confirmed is not None else 0
        no = f"No setting is proved to keep {100 * self.target:g} % ({what}); the full model stays."
        if math.isnan(best.quality):
            return [
                no,
                f"The full model gets nothing right on the {size} images that were to confirm, and "
                "where it is wrong nothing is proved.",
            ]
        bound = f"{percent_down(self.bound)} %"
        measured = f"{100 * best.quality:.1f} % measured on {size} images that the search never saw"
        if self.promised is None:
            return [
                no,
                f"The best is {best.candidate.label}: {measured}, at least {bound} with 95 % "
                f"confidence; {self._cost(best)}.",
            ]
        return [
            f"{best.candidate.label} keeps {100 * self.target:g} % of the full model's quality "
            f"({what}): {measured}, at least {bound} with 95 % confidence.",
            f"{self._cost(best)[0].upper()}{self._cost(best)[1:]}.",
        ]

    def _cost(self, standing: Standing) -> str:
        key = standing.candidate.key
        said = f"{self.tokens[key]:.2f} of the visual tokens"
        if key in self.spreads and not math.isnan(self.spreads[key][0]):
            median, low, high = self.spreads[key]
            what = SAID[self.cost_of]
            said = f"{median:.2f} ({low:.2f}-{high:.2f}) of the full model's {what}, {said}"
        return f"it costs {said}"

    def _why(self) -> str:
        return "; ".join(dict.fromkeys(s.lost for s in self.standings if s.lost)) or "none"

    def yaml(self) -> str:
        """A configuration file, with what it promises as comments."""
        said = ["Made by vtc tune.", *self.sentences(), *self.cautions]
        lines = [f"# {' '.join(line.split())}" for line in said]
        lines += [f"# {line}" for line in served(self.config)]
        return "\n".join(lines) + "\n" + plain_yaml(self.config)

    def write(self, output: Path) -> list[Path]:
        """Write the configuration file, and into the run's folder the page and the numbers. Where no
        setting is proved the file leaves a model as it is, and `best.yaml` has the best setting."""
        from vtc.eval.tune.page import page

        folder = self.folder or folder_of(output)
        folder.mkdir(parents=True, exist_ok=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(output, self.yaml())
        files = [output, folder / "tune.html", folder / "result.json"]
        (folder / "best.yaml").unlink(missing_ok=True)
        if self.promised is None and self.best is not None:
            said = "".join(
                f"# {line}\n" for line in ["NOT proved to keep the target.", *self.sentences()]
            )
            write_whole(folder / "best.yaml", said + plain_yaml(self.best.candidate.config()))
            files.append(folder / "best.yaml")
        write_whole(files[1], page(self, output.name))
        write_whole(files[2], json.dumps(self.to_dict(), indent=1) + "\n")
        return files

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "target": self.target,
            "promised": None if self.promised is None else self.promised.candidate.key,
            "best": None if self.best is None else self.best.candidate.key,
            "quality": _number(self.quality),
            "bound": _number(self.bound),
            "config": self.config.to_dict(),
            "quality_of": self.quality_of,
            "cost_of": self.cost_of,
            "metric": self.metric,
            "full_score": _number(self.score),
            "questions": self.questions,
            "images": {"search": self.searched, "confirm": self.unseen},
            "model": self.model,
            "command": self.command,
            "seconds": round(self.seconds, 1),
            "cautions": list(self.cautions),
            "left_out": dict(self.left_out),
            "settings": [self._setting(standing) for standing in self.standings],
        }

    def _setting(self, standing: Standing) -> dict[str, Any]:
        key, seen, confirmed = standing.candidate.key, standing.seen, standing.confirmed
        return {
            "key": key,
            "label": standing.candidate.label,
            "config": standing.candidate.config().to_dict(),
            "promised": standing is self.promised,
            "images": {"search": standing.images, "confirm": len(confirmed) if confirmed else 0},
            "quality": {
                "search": None if seen is None else _number(seen.quality),
                "confirm": None if confirmed is None else _number(confirmed.quality),
                "bound": standing.low,
            },
            "cost": _number(standing.cost),
            "cost_quartiles": [_number(each) for each in self.spreads.get(key, ())][1:],
            "tokens": _number(self.tokens[key]),
            "why_not": standing.lost,
        }


def plain_yaml(config: CompressionConfig) -> str:
    """A configuration as YAML, without what is not set."""
    import yaml

    values = {k: v for k, v in config.to_dict().items() if v is not None and v != {}}
    return yaml.safe_dump(values, sort_keys=False)


def environment(config: CompressionConfig) -> dict[str, str]:
    """A configuration as the variables of `vtc.config.VARIABLES`."""
    found = {"VTC_METHOD": config.method}
    for name in ("retention", "tokens"):
        if getattr(config, name) is not None:
            found[f"VTC_{name.upper()}"] = json.dumps(getattr(config, name))
    if config.positions != "original":
        found["VTC_POSITIONS"] = config.positions
    if config.options:
        found["VTC_OPTIONS"] = json.dumps(config.options)
    return found


def served(config: CompressionConfig) -> list[str]:
    """How the vLLM plug-in gets a configuration, or why it cannot have it."""
    import shlex

    from vtc.plugins.vllm.settings import Settings

    if config.method == "none":
        return []
    variables = environment(config)
    try:
        Settings(env=variables)
    except VTCError as error:
        return [f"vLLM cannot have it: {' '.join(str(error).split())}"]
    said = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    return [f"For vLLM: export {said}"]


def _cautions(
    tuning: Tuning, quality: str, earlier: Sequence[Mapping[str, Any]], left: Mapping[str, str]
) -> list[str]:
    found = []
    now = (tuning.target, tuning.cost, tuning.tried)
    other = [
        session
        for session in earlier
        if "confirmed" in session
        and (session["target"], session["cost"], session["candidates"]) != now
    ]
    if other:
        targets = ", ".join(f"{session['target']:g}" for session in other)
        found.append(
            f"The images to confirm were used before in this folder, for target {targets}. 5 % is the "
            "chance of a wrong promise of one run; with every further one it adds up."
        )
    if left:
        reason = next(iter(left.values()))
        found.append(f"{len(left)} questions were left out, the first because: {reason}")
    if quality == "answers" and tuning.suite.metric != tuning.suite.mean_metric:
        found.append(f"Quality is of the mean score, not of {tuning.suite.metric}.")
    if tuning.loaded.name == "reference" and isinstance(tuning.suite, Questions):
        found.append(
            "The reference model knows drawn scenes alone. About other pictures it guesses, and this "
            "result says nothing of them; --model takes a model that can read them."
        )
    return found


def _order(standing: Standing) -> tuple[bool, float, str]:
    unknown = math.isnan(standing.cost)
    return unknown, 0.0 if unknown else standing.cost, standing.candidate.key


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 6)
