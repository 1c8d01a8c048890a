"""Choose the thresholds of `token_correlation` on validation pictures of a reference VLM.

The paper's thresholds are unknown; what is reported is that it removes about 66 % of the tokens of
documents, so about 34 % are left. For every shallow layer and share `beta`, this finds the similarity
`alpha` at which the method's own count leaves that share of the patches on validation pictures (of the
crops, where a picture has some), and asks the model validation questions there. Test scenes are not
touched. The result that the method's defaults come from is `reference/logs/token_correlation.json`; that
of the model `photo` is `reference_photo/logs/token_correlation.json`.

    python -m vtc.eval.calibrate_token_correlation --documents 40 --output calibration.json
    python -m vtc.eval.calibrate_token_correlation --photo runs/photo/val --output calibration.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import vtc
from vtc.errors import VTCError
from vtc.eval import reference
from vtc.eval.common.arguments import positive
from vtc.eval.common.loading import Loaded, load
from vtc.eval.common.prompts import user_prompt
from vtc.eval.reference.score import hits
from vtc.eval.suites import create_suite
from vtc.functional.token_correlation import neighbour_count, redundant_patches, sampling_number
from vtc.methods.token_correlation import TokenCorrelation
from vtc.tokens import CompressedTokens, VisualTokens, keep_patches

#: of five and of eleven; the paper's figure shows a shallow one
LAYERS = {"reference": (0, 1, 2), "photo": (1, 3, 5)}
BETAS = (0.02, 0.05, 0.1, 0.2)


@dataclass
class Listener(TokenCorrelation):
    """Keeps every token and remembers the shallow keys, of a picture with crops those of the crops."""

    name: ClassVar[str] = "calibration"
    heard: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def compress(self, tokens: VisualTokens) -> CompressedTokens:
        keys, count = tokens.signal("shallow_keys"), tokens.features.shape[1]
        first = int(len(keys) > 1)  # the thumbnail comes before its crops
        self.heard.append((keys[first:, keys.shape[1] - count :], tokens.valid[first:]))
        return keep_patches(tokens, torch.ones_like(tokens.valid))


def share_left(heard: Sequence[tuple[Tensor, Tensor]], alpha: float, beta: float) -> float:
    """Mean share of the patches that the information density keeps, empty crops included."""
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


@dataclass
class Pictures:
    """Validation pictures of one of the two models.

    Attributes:
        first: a picture and a question about it, of each.
        ask: for each of all questions whether the model is right.
        settings: what makes the sample.
    """

    first: Sequence[tuple[Any, str]]
    ask: Callable[[Loaded], list[bool]]
    settings: dict[str, Any]


def documents(count: int, questions: int) -> Pictures:
    """Documents of the small model."""
    found = reference.scenes("val", count, 1, ["document"], questions=questions)
    sample = [scene for scene in found if scene.questions]
    return Pictures(
        [(scene.image, scene.questions[0].text) for scene in sample],
        lambda loaded: [hit for scene in sample for hit in hits(loaded, scene)],
        {"documents": count, "split": "val", "seed": 1},
    )


def photographs(folder: Path, count: int) -> Pictures:
    """The first pictures that `vtc.eval.reference_photo.data --split val` wrote.

    Raises:
        VTCError: there is no such folder, or it is of another split.
    """
    suite = create_suite("photo", data=str(folder))
    facts = suite.facts()
    if facts["split"] != "val":
        raise VTCError(f"photo: {str(folder)!r} is of split {facts['split']!r}, allowed is 'val'")
    pictures = list(dict.fromkeys(item.cluster for item in suite.items()))[:count]
    items = [item for item in suite.items() if item.cluster in set(pictures)]
    first = {item.cluster: item for item in reversed(items)}

    def ask(loaded: Loaded) -> list[bool]:
        right = []
        for start in range(0, len(items), 8):
            some = items[start : start + 8]
            prompts = [user_prompt(loaded.processor, item.prompt, 1) for item in some]
            images = [[item.images[0]()] for item in some]
            said = loaded.answer(loaded.batch(images, prompts), max_new_tokens=8)
            right += [suite.score(i, text) == 1 for i, text in zip(some, said, strict=True)]
        return right

    return Pictures(
        [(first[name].images[0](), first[name].prompt) for name in pictures],
        ask,
        {"pictures": len(pictures), "fingerprint": facts["fingerprint"]},
    )


def accuracy(loaded: Loaded, method: vtc.Method, pictures: Pictures) -> Any:
    """Share of right answers, and the mean share of patch tokens left."""
    with vtc.compress(loaded.model, method, processor=loaded.processor) as run:
        right = pictures.ask(loaded)
        images = [image for report in run.reports for image in report.images]
    left = [image.patches_after / image.patches_before for image in images]
    return sum(right) / len(right), sum(left) / len(left)


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--target", type=float, default=0.34, help="share of crop patches to leave")
    parser.add_argument("--documents", type=positive, default=40, help="validation pictures")
    parser.add_argument("--questions", type=positive, default=4, help="questions about each")
    parser.add_argument(
        "--photo", type=Path, help="validation pictures of the model `photo`, which is then asked"
    )
    parser.add_argument("--output", type=Path, help="JSON with every row")
    args = parser.parse_args(argv)

    try:
        pictures = (
            photographs(args.photo, args.documents)
            if args.photo
            else documents(args.documents, args.questions)
        )
        name = "photo" if args.photo else "reference"
        loaded = load(name, "cpu")
    except VTCError as error:
        raise SystemExit(str(error)) from error
    rows = []
    for layer in LAYERS[name]:
        listener = Listener(shallow_layer=layer)
        with vtc.compress(loaded.model, listener), torch.inference_mode():
            for image, question in pictures.first:
                loaded.model(**loaded.inputs([image], question))
        for beta in track(BETAS, f"layer {layer}", console=Console(stderr=True)):
            alpha = alpha_for(listener.heard, beta, args.target)
            method = vtc.create_method(
                "token_correlation", alpha=alpha, beta=beta, shallow_layer=layer
            )
            right, left = accuracy(loaded, method, pictures)
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
        settings = {"target": args.target, **pictures.settings}
        args.output.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
