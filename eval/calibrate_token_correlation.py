"""Choose the thresholds of `token_correlation` on documents of the reference VLM.

The paper's thresholds are unknown; what is reported is that it removes about 66 % of the tokens of
documents, so about 34 % are left. For every shallow layer and share `beta`, this finds the similarity
`alpha` at which the method's own count leaves that share of the crops' patches on validation documents,
and asks the model validation questions there. Test scenes are not touched. The result that the method's
defaults come from is `reference/logs/token_correlation.json`.

    python -m vtc.eval.calibrate_token_correlation --documents 40 --output calibration.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import vtc
from vtc.eval import reference
from vtc.eval.common.arguments import positive
from vtc.eval.common.loading import Loaded, load
from vtc.eval.reference.score import hits
from vtc.functional.token_correlation import neighbour_count, redundant_patches, sampling_number
from vtc.methods.token_correlation import TokenCorrelation
from vtc.tokens import CompressedTokens, VisualTokens, keep_patches

LAYERS = (0, 1, 2)  # of five; the paper's figure shows a shallow one
BETAS = (0.02, 0.05, 0.1, 0.2)


@dataclass
class Listener(TokenCorrelation):
    """Keeps every token and remembers the crops' shallow keys."""

    name: ClassVar[str] = "calibration"
    heard: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def compress(self, tokens: VisualTokens) -> CompressedTokens:
        keys, count = tokens.signal("shallow_keys"), tokens.features.shape[1]
        self.heard.append((keys[1:, keys.shape[1] - count :], tokens.valid[1:]))
        return keep_patches(tokens, torch.ones_like(tokens.valid))


def share_left(heard: Sequence[tuple[Tensor, Tensor]], alpha: float, beta: float) -> float:
    """Mean share of the crops' patches that the information density keeps, empty crops included."""
    left = total = 0
    for keys, valid in heard:
        count = neighbour_count(keys, alpha, valid)
        left += int(sampling_number(redundant_patches(count, beta, valid), valid).sum())
        total += int(valid.sum())
    return left / total


def alpha_for(heard: Sequence[tuple[Tensor, Tensor]], beta: float, target: float) -> float:
    """The similarity threshold that leaves `target`; more similarity asked for leaves more."""
    low, high = -1.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if share_left(heard, middle, beta) < target else (low, middle)
    return round(high, 3)


def accuracy(loaded: Loaded, method: vtc.Method, sample: Sequence[reference.Scene]) -> Any:
    """Share of right answers, and the mean share of patch tokens left."""
    with vtc.compress(loaded.model, method, processor=loaded.processor) as run:
        right = [hit for scene in sample for hit in hits(loaded, scene)]
        images = [image for report in run.reports for image in report.images]
    left = [image.patches_after / image.patches_before for image in images]
    return sum(right) / len(right), sum(left) / len(left)


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--target", type=float, default=0.34, help="share of crop patches to leave")
    parser.add_argument("--documents", type=positive, default=40, help="validation documents")
    parser.add_argument("--questions", type=positive, default=4, help="questions about each")
    parser.add_argument("--output", type=Path, help="JSON with every row")
    args = parser.parse_args(argv)

    loaded = load("reference", "cpu")
    documents = reference.scenes("val", args.documents, 1, ["document"], questions=args.questions)
    sample = [scene for scene in documents if scene.questions]
    rows = []
    for layer in LAYERS:
        listener = Listener(shallow_layer=layer)
        with vtc.compress(loaded.model, listener), torch.inference_mode():
            for scene in sample:
                loaded.model(**loaded.inputs([scene.image], scene.questions[0].text))
        for beta in track(BETAS, f"layer {layer}", console=Console(stderr=True)):
            alpha = alpha_for(listener.heard, beta, args.target)
            method = vtc.create_method(
                "token_correlation", alpha=alpha, beta=beta, shallow_layer=layer
            )
            right, left = accuracy(loaded, method, sample)
            rows.append(
                {
                    "shallow_layer": layer,
                    "beta": beta,
                    "alpha": alpha,
                    "crop_share": share_left(listener.heard, alpha, beta),
                    "kept": left,
                    "accuracy": right,
                }
            )
    rows.sort(key=lambda row: -row["accuracy"])
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)
    if args.output:
        settings = {"target": args.target, "documents": args.documents, "split": "val", "seed": 1}
        args.output.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
