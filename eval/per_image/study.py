"""What a budget for each image, or each question, could save at equal quality.

Validation scenes of the reference VLM, drawn as it was trained: rooms, clusters, pages and mixtures of
them, in one to six tiles. One method at 15 budgets; then each policy of `policies` along its curve. Cost
is tokens, quality is right answers as a share of the full model's. Every saving is against one share of
the tokens for all, at the same quality, with a 95 % interval over images. Test scenes are not touched.
What is in `docs/tune.md` comes from this:

    python -m vtc.eval.per_image.study --output study.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from vtc.eval.common.arguments import positive
from vtc.eval.per_image.measure import Answered, measure
from vtc.eval.per_image.policies import curve, policies
from vtc.eval.tune.by_question import rising

QUALITIES = (0.99, 0.98, 0.95, 0.9)
DRAWS = 1000
Array = np.ndarray


class Curve:
    """Quality and cost of a policy, by image."""

    def __init__(self, answered: Answered, scores: Array | None) -> None:
        right, tokens = curve(answered, scores)
        self.right, self.tokens = _by_image(answered, right), _by_image(answered, tokens)
        self.full = _by_image(answered, answered.right[-1:].astype(float))[0]
        self.whole = _by_image(answered, answered.tokens[-1:].astype(float))[0]

    def cost(self, quality: float, times: Array) -> Array:
        """Share of the tokens at this quality, between two points by a straight line.

        Args:
            times: how often each image counts, `[draws, images]`.
        """
        costs = times @ self.tokens.T / (times @ self.whole)[:, None]
        found = times @ self.right.T / (times @ self.full)[:, None]
        out = np.full(len(times), np.nan)
        for row, (cost, value) in enumerate(zip(costs, found, strict=True)):
            order = np.argsort(cost, kind="stable")
            smooth = rising(value[order])
            if smooth[0] <= quality <= smooth[-1]:
                out[row] = np.interp(quality, smooth, cost[order])
        return out


def _by_image(answered: Answered, values: Array) -> Array:
    """Sums over the questions of each image, `[points, images]`."""
    names, index = np.unique(answered.image, return_inverse=True)
    out = np.zeros((len(values), len(names)))
    np.add.at(out.T, index, values.T)
    return out


def study(answered: Answered) -> list[dict[str, Any]]:
    """A row for each policy and quality: tokens and saving, with its interval."""
    images = len(np.unique(answered.image))
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(images, np.full(images, 1 / images), DRAWS).astype(float)
    times = np.concatenate([np.ones((1, images)), drawn])
    one = Curve(answered, None)
    base = {quality: one.cost(quality, times) for quality in QUALITIES}
    rows: list[dict[str, Any]] = [
        {"policy": "one share for all", "quality": quality, "tokens": _digits(base[quality][0])}
        for quality in QUALITIES
    ]
    for policy in policies():
        mine = Curve(answered, policy.scores(answered))
        for quality in QUALITIES:
            cost = mine.cost(quality, times)
            saved = 1 - cost / base[quality]
            known = saved[1:][~np.isnan(saved[1:])]
            low, high = np.quantile(known, (0.025, 0.975)) if len(known) else (np.nan, np.nan)
            rows.append({
                "policy": policy.name, "quality": quality, "tokens": _digits(cost[0]),
                "saved": _digits(saved[0]), "low": _digits(low), "high": _digits(high),
            })  # fmt: skip
    return rows


def _digits(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)


def table(rows: list[dict[str, Any]]) -> Table:
    """The rows for a terminal: a line for each policy."""
    out = Table("policy", *(f"{quality:.0%}" for quality in QUALITIES))
    for name in dict.fromkeys(row["policy"] for row in rows):
        cells = []
        for row in (row for row in rows if row["policy"] == name):
            if row["tokens"] is None:
                cells.append("")
            elif "saved" not in row:
                cells.append(f"{row['tokens']:.3f} of the tokens")
            else:
                cells.append(f"{row['saved']:+.0%} [{row['low']:+.0%}, {row['high']:+.0%}]")
        out.add_row(name, *cells)
    return out


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--method", default="divprune", help="default divprune")
    parser.add_argument("--seeds", type=int, nargs="+", default=[80, 81], help="of the scenes")
    parser.add_argument("--scenes", type=positive, default=120, help="of each seed")
    parser.add_argument(
        "--answers", type=Path, help="npz to keep the answers in, or to take them from"
    )
    parser.add_argument("--output", type=Path, help="JSON with every row")
    args = parser.parse_args(argv)
    if args.answers and args.answers.exists():
        answered = Answered.load(args.answers)
    else:
        answered = measure(args.method, args.seeds, args.scenes)
        if args.answers:
            answered.save(args.answers)
    rows = study(answered)
    console = Console(width=110)
    console.print(table(rows))
    if args.output:
        facts = {"split": "val", "method": args.method, "seeds": args.seeds, "scenes": args.scenes}
        facts["questions"], facts["full"] = len(answered.image), _digits(answered.right[-1].mean())
        args.output.write_text(json.dumps({"settings": facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
