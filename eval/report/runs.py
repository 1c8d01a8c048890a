"""The runs of a report: read from their folders, and refused where they cannot be compared."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtc.errors import VTCError
from vtc.eval.common import manifest
from vtc.eval.common.records import Answer, read_answers, read_manifest
from vtc.eval.common.settings import Setting
from vtc.eval.common.timing import Ratio
from vtc.eval.efficiency.lines import read_measures
from vtc.eval.report.results import group_key
from vtc.eval.suites import list_suites, suite_class

#: entries of a manifest that accuracy runs must share
SAME = ("model", "suite", "generation")
#: of the model, what an efficiency run must share with an accuracy run
SAME_MODEL = ("name", "class", "sha256", "revision", "parameters", "dtype")
#: differences that `--allow` lets through: what it is called -> entries of `code`
ALLOWED = {"code": ("vtc", "commit", "dirty", "sources"), "packages": ("python", "packages")}

#: of settings in a warning
FEW_NAMES = 6


@dataclass(frozen=True)
class Recorded:
    """A run on disk.

    Attributes:
        folder: where it is.
        facts: its manifest.
    """

    folder: Path
    facts: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What the page calls it: the folder's name, no path."""
        return self.folder.resolve().name

    @property
    def settings(self) -> list[Setting]:
        """What the run measures."""
        return [
            Setting(entry["method"], entry["retention"], entry["seed"], entry["options"])
            for entry in self.facts["settings"]
        ]


@dataclass(frozen=True)
class Collected:
    """What a report is made from.

    Attributes:
        accuracy: the accuracy runs, one at least.
        efficiency: the efficiency run, None without one.
        answers: of all accuracy runs, each setting and question once.
        times: time to the first token by `results.group_key`, None without an efficiency run.
        warnings: what a reader must know, such as differences that were allowed.
    """

    accuracy: list[Recorded]
    efficiency: Recorded | None
    answers: list[Answer]
    times: dict[str, Ratio] | None
    warnings: list[str]

    @property
    def facts(self) -> Mapping[str, Any]:
        """Manifest of the first accuracy run; the others say the same of model and suite."""
        return self.accuracy[0].facts

    @property
    def metric(self) -> str:
        """Name of the mean score: that of the suite's headline where the two are the same."""
        return "mean score" if self.headline_apart else self.facts["suite"]["metric"]

    @property
    def headline_apart(self) -> bool:
        """Whether the suite's headline is another figure than the mean score (MME's points)."""
        suite = self.facts["suite"]
        if suite["name"] not in list_suites():  # one that is not part of vtc
            return False
        return suite_class(suite["name"]).mean_metric != suite["metric"]

    @property
    def settings(self) -> list[Setting]:
        """Settings of all accuracy runs."""
        return [setting for run in self.accuracy for setting in run.settings]


def collect(folders: Sequence[Path], allow: Collection[str] = ()) -> Collected:
    """Read runs and check that they go together.

    Args:
        allow: some of `ALLOWED`.

    Raises:
        VTCError: a folder holds no run, there is no accuracy run or more than one efficiency run,
            or two runs cannot be compared; the message names the difference and both runs.
    """
    for name in allow:
        if name not in ALLOWED:
            raise VTCError(f"allow: got {name!r}, allowed are {', '.join(ALLOWED)}")
    runs = [Recorded(folder, read_manifest(folder)) for folder in folders]
    known: dict[str, list[Recorded]] = {"accuracy": [], "efficiency": []}
    for run in runs:
        kind = run.facts.get("kind")
        if kind not in known:
            raise VTCError(
                f"run={str(run.folder)!r}: a run of kind {kind!r}; a report takes "
                f"{' and '.join(known)} runs"
            )
        known[kind].append(run)
    accuracy, efficiency = known["accuracy"], known["efficiency"]
    if not accuracy:
        raise VTCError("run: got no accuracy run, a report needs one")
    if len(efficiency) > 1:
        raise VTCError(
            f"run: got {len(efficiency)} efficiency runs, {efficiency[0].name!r} and "
            f"{efficiency[1].name!r} among them; times of one run only can be compared"
        )
    warnings = []
    for run in [*accuracy[1:], *efficiency]:
        warnings += _check(accuracy[0], run, allow)
    warnings += [
        f"Run {run.name} was gone on with under other code or packages than it began with."
        for run in accuracy
        if _mixed(run.facts)
    ]
    warnings += [text for run in efficiency for text in _timing(run.facts)]
    collected = Collected(
        accuracy,
        efficiency[0] if efficiency else None,
        _answers(accuracy),
        _times(efficiency[0], accuracy[0]) if efficiency else None,
        warnings,
    )
    if collected.headline_apart:
        warnings.append(
            f"The headline of this suite ({collected.facts['suite']['metric']}) is not a mean over "
            "questions. This page shows the mean score a question; the headline is in summary.md "
            "of the run."
        )
    return collected


def _check(one: Recorded, two: Recorded, allow: Collection[str]) -> list[str]:
    """Compare two runs.

    Returns:
        The differences that were allowed.
    """

    def part(run: Recorded) -> dict[str, Any]:
        if two.facts["kind"] == one.facts["kind"]:
            return {name: run.facts.get(name) for name in SAME}
        return {"model": {name: run.facts["model"].get(name) for name in SAME_MODEL}}

    found = list(manifest.differences(part(one), part(two)))
    if found:
        raise VTCError(f"run: {between(one, two, found)}; such runs cannot be compared")
    warnings = []
    for key, names in ALLOWED.items():
        first, second = (
            {name: run.facts["code"].get(name) for name in names} for run in (one, two)
        )
        found = list(manifest.differences(first, second, "code."))
        if not found:
            continue
        told = between(one, two, found)
        if key not in allow:
            raise VTCError(f"run: {told}; --allow {key} puts them on one page all the same")
        warnings.append(f"{told[0].upper()}{told[1:]}. This was allowed by --allow {key}.")
    return warnings


def between(one: Recorded, two: Recorded, found: Sequence[tuple[str, Any, Any]]) -> str:
    """In what two runs differ, in words, by what `manifest.differences` found."""
    short = manifest.short
    told = "; ".join(f"{name} is {short(a)} and {short(b)}" for name, a, b in found[:3])
    more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
    return f"runs {one.name!r} and {two.name!r} differ: {told}{more}"


def _mixed(facts: Mapping[str, Any]) -> bool:
    """Whether sessions of a run differ in what made them."""
    names = [
        name for names in ALLOWED.values() for name in names if name not in ("commit", "dirty")
    ]
    made = [
        {name: session.get("code", {}).get(name) for name in names}
        for session in facts.get("sessions", [])
    ]
    return any(one != made[0] for one in made)


def _timing(facts: Mapping[str, Any]) -> list[str]:
    """What an efficiency run says against itself."""
    found = []
    for text in facts.get("warnings", []):
        what, colon, names = text.partition(": ")
        settings = names.split(", ") if colon else []
        if len(settings) > FEW_NAMES:
            text = f"{what}: {', '.join(settings[:FEW_NAMES])} and {len(settings) - FEW_NAMES} more"
        found.append(f"Times: {text}.")
    done, wanted = facts.get("finished_rounds"), facts.get("rounds")
    if done is not None and done != wanted:
        found.append(f"Times: the run was stopped after {done} of {wanted} rounds.")
    return found


def _answers(runs: Sequence[Recorded]) -> list[Answer]:
    """Answers of all runs. A setting that two runs measured (the full model, mostly) is taken once;
    its answers must be the same in both."""
    found: dict[tuple[str, str], tuple[Answer, Recorded]] = {}
    for run in runs:
        for answer in read_answers(run.folder):
            key = (answer.setting, answer.item)
            if key in found and found[key][0].score is not None and answer.score is not None:
                other, first = found[key]
                if other.prediction != answer.prediction:
                    raise VTCError(
                        f"run: runs {first.name!r} and {run.name!r} both measured "
                        f"{answer.setting} and differ: question {answer.item!r} was answered "
                        f"{other.prediction!r} and {answer.prediction!r}; leave one of them out"
                    )
            elif key not in found or answer.score is not None:
                found[key] = (answer, run)
    return [answer for answer, _ in found.values()]


def _times(run: Recorded, accuracy: Recorded) -> dict[str, Ratio]:
    """Time to the first token as a multiple of the full model's, under the attention that the
    accuracy run used if it was timed, else under the first one."""
    lines = read_measures(run.folder)
    attentions = [line.attention for line in lines]
    wanted = accuracy.facts["model"].get("attention")
    if wanted not in attentions and attentions:
        wanted = attentions[0]
    times: dict[str, Ratio] = {}
    for line in lines:
        measure = line.measures.get("ttft")
        if line.attention == wanted and measure is not None and measure.ratio is not None:
            setting = Setting(line.method, line.retention, line.seed, line.options)
            times.setdefault(group_key(setting), measure.ratio)
    return times
