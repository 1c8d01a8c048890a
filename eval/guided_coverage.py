"""What `coverage` gains when the question weighs its demand, on validation scenes of the reference VLM.

Every question has a selection of its own. Each row is compared with `coverage` without the question by a
paired test over scenes, also for every group of questions. Test scenes are not touched. What
docs/own-methods.md says of it comes from `reference/logs/guided.json`.

    python -m vtc.eval.guided_coverage --seeds 70 --scenes 40 --output guided.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import vtc
from vtc import AsksText
from vtc.eval import reference
from vtc.eval.calibrate_coverage import hits, label
from vtc.eval.common.arguments import positive
from vtc.eval.common.listening import Listener
from vtc.eval.common.loading import Loaded, load
from vtc.eval.common.statistics import compare
from vtc.eval.reference.questions import TYPES
from vtc.eval.reference.threads import one_thread
from vtc.methods.base import Method
from vtc.tokens import OF_THE_QUESTION, CompressedTokens, VisualTokens

RETENTIONS = (0.25, 0.1, 0.05, 0.03)
#: images that are compressed at once, so that memory is bounded
BLOCK = 16
GROUPS = tuple(dict.fromkeys(TYPES.values()))
#: the first is what the others are compared with
SETTINGS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("coverage", {}),
    ("coverage", {"guidance": 0.5, "sign": "positive"}),
    ("coverage", {"guidance": 0.5, "sign": "negative"}),
    ("coverage", {"guidance": 0.5, "text_score": "similarity"}),
    ("cdpruner", {"sign": "positive"}),
)


@dataclass
class Hearer(AsksText, Listener):
    """A `Listener` that is asked something."""

    name: ClassVar[str] = "hearer"


def heard(loaded: Loaded, scene: reference.Scene, text: str, methods: Sequence[Method]) -> Any:
    """The image of a scene, with every signal that methods read, asked `text`."""
    hearer = Hearer(retention=0.5, methods=methods)
    with vtc.compress(loaded.model, hearer, processor=loaded.processor), torch.inference_mode():
        loaded.model(**loaded.inputs([scene.image], text))
    return hearer.heard[0]


def asked(
    loaded: Loaded, sample: Sequence[reference.Scene], methods: Sequence[Method]
) -> list[tuple[int, reference.Scene, VisualTokens]]:
    """Every question: the number of its scene, the scene with that question alone, and its tokens.

    What methods read of an image does not hang on the question, nor what they read of a question on the
    image, so that each image and each text are read once.
    """
    small = min(sample, key=lambda scene: scene.image.width * scene.image.height)
    texts = sorted({question.text for scene in sample for question in scene.questions})
    requests = [request for m in methods for request in m.requests().values()]
    of_text = {str(request) for request in requests if request.kind in OF_THE_QUESTION}
    words: dict[str, dict[str, torch.Tensor]] = {}
    for text in track(texts, "reading", console=Console(stderr=True)):
        signals = heard(loaded, small, text, methods).signals
        words[text] = {k: v for k, v in signals.items() if k in of_text}
    found = []
    for number, scene in enumerate(track(sample, "looking", console=Console(stderr=True))):
        tokens = heard(loaded, scene, scene.questions[0].text, methods)
        for question in scene.questions:
            each = replace(tokens, signals={**tokens.signals, **words[question.text]})
            found.append((number, replace(scene, questions=[question]), each))
    return found


def chosen(method: Method, tokens: Sequence[VisualTokens]) -> list[CompressedTokens]:
    """What a method makes of images that were listened to."""
    images = [
        replace(each, signals={n: each.signals[str(r)] for n, r in method.requests().items()})
        for each in tokens
    ]
    blocks = (images[start : start + BLOCK] for start in range(0, len(images), BLOCK))
    return [out for block in blocks for out in method.compress_all(block)]


@one_thread()
def study(
    sample: Sequence[reference.Scene], bias: float, retentions: Sequence[float] = RETENTIONS
) -> list[dict[str, Any]]:
    """A row for each setting and retention: accuracy, over all questions and by group, and the
    differences to the first setting with their intervals over scenes."""
    loaded = load("reference", "cpu")
    methods = [vtc.create_method(name, **options) for name, options in SETTINGS]
    names = [label(name, options) for name, options in SETTINGS]
    questions = asked(loaded, sample, methods)
    clusters = np.array([str(number) for number, _, _ in questions])
    group = np.array([scene.questions[0].group for _, scene, _ in questions])
    scenes = [scene for _, scene, _ in questions]
    tokens = [image for _, _, image in questions]
    rows: list[dict[str, Any]] = []
    for retention in retentions:
        columns = []
        for method in track(methods, f"{retention:.0%}", console=Console(stderr=True)):
            outs = dict(enumerate(chosen(replace(method, retention=retention), tokens)))
            right = hits(loaded.model, scenes, outs, bias)
            columns.append(np.array([float(right[number, 0]) for number in range(len(scenes))]))
        for row, (name, column) in enumerate(zip(names, columns, strict=True)):
            facts: dict[str, Any] = {"setting": name, "retention": retention}
            for which in ("all", *GROUPS):
                here = np.ones(len(group), dtype=bool) if which == "all" else group == which
                facts[which] = round(float(column[here].mean()), 4)
                if row:
                    pair = np.array([columns[0][here], column[here]])
                    (found,) = compare(pair, clusters[here].tolist(), [names[0], name], [(1, 0)])
                    gap = found.difference
                    facts[f"{which}_difference"] = [
                        round(x, 4) for x in (gap.value, gap.low, gap.high)
                    ]
            rows.append(facts)
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows for a terminal: accuracy in %, and how far it is from the first setting, in points."""
    out = Table("setting", "retention", "accuracy", "to the first", *GROUPS)
    for row in rows:
        cells = [f"{100 * row[which]:.1f}" for which in ("all", *GROUPS)]
        gap = [100 * value for value in row.get("all_difference", ())]
        apart = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*gap) if gap else ""
        out.add_row(row["setting"], f"{row['retention']:.0%}", cells[0], apart, *cells[1:])
    return out


def page(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows as lines of a table in Markdown: accuracy in %, and how far each setting is from the
    first, in points: over all questions with the interval, and by group."""
    lines = []
    for row in rows:
        cells = [f"{100 * row['all']:.1f}"]
        if "all_difference" in row:
            one, low, high = (100 * value for value in row["all_difference"])
            cells.append(f"{one:+.1f} [{low:+.1f}, {high:+.1f}]")
            cells += [f"{100 * row[f'{group}_difference'][0]:+.1f}" for group in GROUPS]
        else:
            cells += ["", *(f"{100 * row[group]:.1f}" for group in GROUPS)]
        lines.append(f"| {row['retention']:.0%} | {row['setting']} | " + " | ".join(cells) + " |")
    return lines


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[70], help="of the scenes")
    parser.add_argument("--scenes", type=positive, default=40, help="of each seed")
    parser.add_argument("--retention", type=float, nargs="+", default=RETENTIONS)
    parser.add_argument("--bias", type=float, default=0.0, help="as in calibrate_coverage")
    parser.add_argument("--output", type=Path, help="JSON with every row")
    args = parser.parse_args(argv)
    drawn = (reference.scenes("val", args.scenes, seed) for seed in args.seeds)
    sample = [scene for some in drawn for scene in some if scene.questions]
    rows = study(sample, args.bias, args.retention)
    Console(width=130).print(table(rows))
    if args.output:
        facts = {"split": "val", "seeds": args.seeds, "scenes": args.scenes, "bias": args.bias}
        facts["questions"] = sum(len(scene.questions) for scene in sample)
        args.output.write_text(json.dumps({"settings": facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
