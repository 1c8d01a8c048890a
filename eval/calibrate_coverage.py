"""Choose the constants of `coverage` on validation scenes of the reference VLM.

Every constant is varied by itself, around the defaults, at 10, 5 and 3 % of the tokens. Each row is
compared with the defaults by a paired test over scenes, or with the first that `--settings` names.
`bias` adds the logarithm of the number of patches that a token stands for, times this factor, to the
logits of all attention to it, and the language model is run by hand for that (`reference.packing`); the
method has it as `proportional=True`, with a factor of 1. `power` is no option of the method: attention
is raised to it, and below 1 patches that CLS hardly looks at count more. Test scenes are not touched.
The result that the defaults come from is
`reference/logs/coverage.json`.

    python -m vtc.eval.calibrate_coverage --seeds 40 41 --output calibration.json
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import vtc
from vtc.batch import ImageBatch
from vtc.eval import reference
from vtc.eval.common.arguments import positive
from vtc.eval.common.listening import Listener
from vtc.eval.common.loading import Loaded, load
from vtc.eval.common.statistics import compare
from vtc.eval.reference.packing import (
    answer_states,
    exact,
    pack,
    prefix_embeddings,
)
from vtc.eval.reference.questions import TYPES
from vtc.eval.reference.threads import one_thread
from vtc.eval.reference.tokenizer import build_tokenizer
from vtc.eval.reference.train_language import by_grid
from vtc.methods.base import Method
from vtc.methods.coverage import Coverage
from vtc.tokens import CompressedTokens, VisualTokens, keep_patches

RETENTIONS = (0.1, 0.05, 0.03)
#: what is varied: options of `coverage`, `bias` and `power`
VARIANTS: tuple[Mapping[str, Any], ...] = (
    {},
    {"sharpness": 1.0},
    {"sharpness": 3.0},
    {"overview": 0.0},
    {"overview": 1.0},
    {"overview": 4.0},
    {"overview": 100.0},
    {"layer": "read"},
    {"merge": False},
    {"scope": "tile"},
    {"bias": 0.5},
    {"bias": 1.0},
    {"power": 0.75},
    {"bias": 1.0, "power": 0.75},
)
#: methods of others, for comparison
RIVALS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("divprune", {}),
    ("scope", {"scope": "image"}),
)


@dataclass
class Powered(Coverage):
    """`coverage` by a power of the attention."""

    power: float = 1.0

    name: ClassVar[str] = "powered"

    def attention(self, batch: ImageBatch) -> Tensor:
        return super().attention(batch) ** self.power


def listened(
    loaded: Loaded, sample: Sequence[reference.Scene], methods: Sequence[Method]
) -> list[VisualTokens]:
    """The visual tokens of every scene, with the signals that the methods read."""
    listener = Listener(retention=0.5, methods=methods)
    with vtc.compress(loaded.model, listener), torch.inference_mode():
        for scene in track(sample, "looking", console=Console(stderr=True)):
            loaded.model(**loaded.inputs([scene.image], scene.questions[0].text))
    return listener.heard


def compressed(method: Method, tokens: VisualTokens) -> CompressedTokens:
    """What a method makes of an image that was listened to."""
    signals = {name: tokens.signals[str(r)] for name, r in method.requests().items()}
    return method.compress(replace(tokens, signals=signals))


@torch.no_grad()
def hits(
    model: Any,
    sample: Sequence[reference.Scene],
    outs: Mapping[int, CompressedTokens],
    bias: float = 0.0,
) -> dict[tuple[int, int], bool]:
    """Whether each question is answered right, by number of scene and question.

    Args:
        outs: what is left of each scene's tokens, by its number.
        bias: factor of the logarithm of what a token stands for, in the logits of attention.
    """
    tokenizer, rng = build_tokenizer(), np.random.default_rng(0)
    number = {id(scene): index for index, scene in enumerate(sample)}
    found: dict[tuple[int, int], bool] = {}
    for batch in by_grid(sample):
        mine = [outs[number[id(scene)]] for scene in batch]
        masks = [mask_of(scene, out) for scene, out in zip(batch, mine, strict=True)]
        packed = pack(batch, tokenizer, rng, "plain", False, masks)
        # every patch that is left comes with `outs`
        prefix = prefix_embeddings(model, packed, None)
        size = torch.zeros(packed.source.shape)
        for row, out in enumerate(mine):
            columns = (packed.source[row] >= -1).nonzero().squeeze(1)  # of the image, in order
            patches = columns[out.is_patch]
            prefix[row, patches] = out.features[out.is_patch]
            size[row, patches] = out.weight[out.is_patch].log()
        states, _ = answer_states(model, packed, prefix, bias * size if bias else None)
        logits = model.lm_head(states[packed.targets >= 0])
        for scene, right in zip(batch, exact(packed, logits), strict=True):
            found |= {(number[id(scene)], nth): hit for nth, hit in enumerate(right)}
    return found


def mask_of(scene: reference.Scene, out: CompressedTokens) -> Any:
    """Which of a scene's image tokens are left; newlines are."""
    from vtc.eval.reference.tiles import token_layout

    mask = np.zeros(len(token_layout(scene.image.height, scene.image.width)), dtype=bool)
    mask[out.anchor.numpy()] = True
    return mask


def label(name: str, options: Mapping[str, Any]) -> str:
    """A row's name."""
    return " ".join([name, *(f"{key}={value}" for key, value in options.items())])


def settings() -> Iterator[tuple[str, Method, float]]:
    """Every row: its name, its method at any budget, and the bias."""
    for name, options in [*(("coverage", v) for v in VARIANTS), *RIVALS]:
        fields = {key: value for key, value in options.items() if key != "bias"}
        if "power" in fields:
            method: Method = Powered(**fields)
        else:
            method = vtc.create_method(name, **fields)
        yield label(name, options), method, options.get("bias", 0.0)


@one_thread()
def study(seeds: Sequence[int], count: int, names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """A row for each setting and retention: accuracy, that of reading questions, and the difference to
    the first setting with its interval over scenes; `names` of rows, or all of them."""
    loaded = load("reference", "cpu")
    rows_there = {row[0]: row for row in settings()}
    chosen = [rows_there[name] for name in names or rows_there]
    sample = [s for seed in seeds for s in reference.scenes("val", count, seed) if s.questions]
    tokens = listened(loaded, sample, [method for _, method, _ in chosen])
    asked = [(s, q) for s, scene in enumerate(sample) for q in range(len(scene.questions))]
    clusters = [str(scene) for scene, _ in asked]
    reading = np.array([TYPES[sample[s].questions[q].type] == "reading" for s, q in asked])
    rows: list[dict[str, Any]] = []

    def scores(outs: Mapping[int, CompressedTokens], bias: float) -> Any:
        right = hits(loaded.model, sample, outs, bias)
        return np.array([float(right[key]) for key in asked])

    everything = {i: keep_patches(each, each.valid) for i, each in enumerate(tokens)}
    full = scores(everything, 0.0)
    rows.append({"setting": "full", "retention": 1.0, **figures(full, reading)})
    for retention in RETENTIONS:
        columns = []
        for _, method, bias in track(chosen, f"{retention:.0%}", console=Console(stderr=True)):
            budget = replace(method, retention=retention)
            outs = {i: compressed(budget, each) for i, each in enumerate(tokens)}
            columns.append(scores(outs, bias))
        names = [name for name, _, _ in chosen]
        pairs = [(row, 0) for row in range(1, len(columns))]
        found = compare(np.array(columns), clusters, names, pairs)
        for row, (name, column) in enumerate(zip(names, columns, strict=True)):
            more = {}
            if row:
                other = found[row - 1].difference
                more = {"difference": other.value, "low": other.low, "high": other.high}
            rows.append(
                {"setting": name, "retention": retention, **figures(column, reading), **more}
            )
    return rows


def figures(scores: Any, reading: Any) -> dict[str, float]:
    """Accuracy over all questions and over those that ask to read."""
    return {"accuracy": float(scores.mean()), "reading": float(scores[reading].mean())}


def plain(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows with numbers of four digits."""
    return [
        {
            key: round(value, 4) if isinstance(value, float) and math.isfinite(value) else value
            for key, value in row.items()
        }
        for row in rows
    ]


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows for a terminal."""
    out = Table("setting", "retention", "accuracy", "reading", "to the defaults")
    for row in rows:
        apart = ""
        if "difference" in row:
            low, high = 100 * row["low"], 100 * row["high"]
            apart = f"{100 * row['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"
        out.add_row(
            row["setting"],
            f"{row['retention']:.0%}",
            f"{row['accuracy']:.3f}",
            f"{row['reading']:.3f}",
            apart,
        )
    return out


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[40, 41], help="of the scenes")
    parser.add_argument(
        "--scenes", type=positive, default=60, help="validation scenes of each seed"
    )
    parser.add_argument("--output", type=Path, help="JSON with every row")
    parser.add_argument(
        "--settings",
        nargs="+",
        default=[],
        choices=[name for name, _, _ in settings()],
        metavar="NAME",
        help="rows by name, such as 'coverage bias=1.0', the first to compare with; all by default",
    )
    args = parser.parse_args(argv)
    rows = plain(study(args.seeds, args.scenes, args.settings))
    Console(width=110).print(table(rows))
    if args.output:
        facts = {"split": "val", "seeds": args.seeds, "scenes": args.scenes}
        args.output.write_text(json.dumps({"settings": facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
