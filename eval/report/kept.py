"""Pictures of kept tokens, made again from the model and the suite that the manifest names.

A run keeps answers, no pictures. What a method keeps of an image follows from the model, the image
and the method's settings, so the pictures can be made later, as long as all three can be had.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import vtc
from vtc.errors import VTCError
from vtc.eval.common.records import Answer
from vtc.eval.common.settings import FULL, Setting
from vtc.eval.report.results import Results
from vtc.eval.report.runs import Collected
from vtc.pictures import load_image

if TYPE_CHECKING:
    from PIL.Image import Image

    from vtc.eval.accuracy.runner import Runner
    from vtc.eval.suites.base import Item, Suite

SIDE = 300  # px, widest picture


@dataclass(frozen=True)
class Panel:
    """What one method kept of a picture.

    Attributes:
        label: the method.
        picture: painted over.
        kept, patches: patch tokens of the question's images, after (on average over the layers of the
            language model) and before.
        said: the recorded answer.
        right: whether it scored more than half.
    """

    label: str
    picture: Image
    kept: int
    patches: int
    said: str
    right: bool


@dataclass(frozen=True)
class Example:
    """A question with its panels.

    Attributes:
        question, answers, kind: of the item.
        picture: the first image.
        said: the full model's answer, None when it was not measured.
        panels: one a method.
    """

    question: str
    answers: tuple[str, ...]
    kind: str
    picture: Image
    said: str | None
    panels: list[Panel]


def choose(results: Results, retention: float | None, count: int) -> list[str]:
    """Items on which the methods disagree most at a retention: about half of them right.

    Questions that the full model gets right come first; no two are about one image, and types take
    turns. The choice follows from the answers alone.

    Args:
        retention: which entries to look at; of a method that draws the first seed.
        count: most items.

    Returns:
        Ids of items, most disagreement first.
    """
    keys = [_first(results, label, retention) for label in results.labels]
    rows = [results.scores[setting.key] for setting in keys if setting is not None]
    if len(rows) < 2:
        return []
    table = np.array(rows)
    split = np.abs((table > 0.5).mean(0) - 0.5)
    full = results.full
    known = results.scores[FULL.key] > 0.5 if full is not None else np.ones(len(split))
    order = sorted(
        (int(index) for index in np.flatnonzero(~np.isnan(table).any(0)) if split[index] < 0.5),
        key=lambda i: (not known[i], split[i], results.items[i]),
    )
    chosen: list[int] = []
    while len(chosen) < count:
        kinds = {kind: 0 for kind in results.kinds}
        for index in chosen:
            kinds[results.kind_of[index]] += 1
        images = {results.clusters_of[index] for index in chosen}
        free = [i for i in order if i not in chosen and results.clusters_of[i] not in images]
        if not free:
            break
        least = min(kinds[results.kind_of[i]] for i in free)
        chosen.append(next(i for i in free if kinds[results.kind_of[i]] == least))
    return [results.items[index] for index in chosen]


def _first(results: Results, label: str, retention: float | None) -> Setting | None:
    """The setting of a method's first seed at a retention."""
    for entry in results.at(retention):
        if entry.label == label:
            return Setting(entry.method, entry.retention, entry.seeds[0], entry.options)
    return None


def remake(
    collected: Collected,
    results: Results,
    items: list[str],
    retention: float | None,
    model: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[Example]:
    """Make the pictures of some items again, of the methods that figures start with.

    Args:
        items: from `choose`.
        model: where the model is, when the manifest tells its name alone.
        options: of the suite, such as `data`, when the manifest does not tell them.

    Raises:
        VTCError: model or suite cannot be had, or are not what the run was made with.
    """
    settings = [_first(results, label, retention) for label in results.shown]
    chosen = {
        label: setting
        for label, setting in zip(results.shown, settings, strict=True)
        if setting is not None
    }
    suite = _suite(collected.facts["suite"], options or {})
    known = {item.id: item for item in suite.items()}
    runner = _runner(collected.facts, suite, list(chosen.values()), model)
    said = {(answer.setting, answer.item): answer for answer in collected.answers}
    return [_example(runner, known[item], chosen, said) for item in items]


def _suite(facts: Mapping[str, Any], options: Mapping[str, Any]) -> Suite:
    """The suite of a manifest; entries of its facts that are options of the suite are taken."""
    from vtc.eval.common.manifest import differences, plain
    from vtc.eval.suites import create_suite, suite_class

    allowed = {field.name for field in dataclasses.fields(suite_class(facts["name"])) if field.init}
    told = {name: value for name, value in facts["facts"].items() if name in allowed}
    suite = create_suite(facts["name"], **{**told, **options})
    found = list(differences(facts["facts"], plain(suite.facts())))
    if found:
        name, before, now = found[0]
        raise VTCError(f"suite: its {name} is {now!r}, the run was made with {before!r}")
    return suite


def _runner(
    facts: Mapping[str, Any], suite: Suite, settings: list[Setting], model: str | None
) -> Runner:
    from vtc.eval.accuracy.runner import Runner
    from vtc.eval.common import manifest
    from vtc.eval.common.loading import load
    from vtc.eval.common.settings import create

    name = model or facts["model"]["name"]
    loaded = load(name, None, facts["model"]["dtype"])
    now = manifest.model(name, loaded.model)
    for part in ("class", "sha256", "revision", "parameters"):
        if now[part] != facts["model"].get(part):
            raise VTCError(
                f"model: its {part} is {now[part]!r}, the run was made with "
                f"{facts['model'].get(part)!r}"
            )
    defaults = vtc.model_defaults(loaded.model)
    prompt = facts["generation"]["prompt"]
    return Runner(
        loaded,
        suite,
        {setting.key: create(setting, defaults) for setting in settings},
        None if prompt == "chat template" else prompt,
        facts["generation"]["positions"],
    )


def _example(
    runner: Runner,
    item: Item,
    settings: Mapping[str, Setting],
    said: Mapping[tuple[str, str], Answer],
) -> Example:
    images = [load_image(call()) for call in item.images]
    panels = [
        _panel(runner, item, images, label, setting, said[setting.key, item.id])
        for label, setting in settings.items()
    ]
    full = said.get((FULL.key, item.id))
    return Example(
        item.prompt,
        item.answers,
        item.kind,
        _fitted(images[0]),
        None if full is None else full.prediction,
        panels,
    )


def _panel(
    runner: Runner, item: Item, pictures: list[Image], label: str, setting: Setting, answer: Answer
) -> Panel:
    from vtc.panels import paint_panel

    images = runner.report(setting, item, pictures).images
    part = "thumbnail" if images[0].tile_grid is None else "crops"
    return Panel(
        label,
        paint_panel(pictures[0], images[0], part, SIDE, labels=False),
        round(sum(image.average_retention * image.patches_before for image in images)),
        sum(image.patches_before for image in images),
        answer.prediction or "",
        (answer.score or 0.0) > 0.5,
    )


def _fitted(picture: Image) -> Image:
    """As large as the panels."""
    from PIL.Image import Resampling

    scale = min(SIDE / picture.width, 1.125 * SIDE / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Resampling.LANCZOS)
