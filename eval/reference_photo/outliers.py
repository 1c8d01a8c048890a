"""How the vision towers of the two reference models differ: outlier patches, and where CLS looks.

Run: ``python -m vtc.eval.reference_photo.outliers --data FOLDER`` with the folder of the suite `photo`
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vtc.errors import VTCError

#: share of the patches that counts as "the first few" of an image's attention
FEW = 0.05


def figures(states: Tensor, attention: Tensor) -> dict[str, float]:
    """Of images that a tower saw.

    Args:
        states: what is read of the tower, `[images, patches, width]`.
        attention: of CLS to patches in the layer that makes it, mean over heads, `[images, patches]`.

    Returns:
        `largest`: the largest norm of an image in that of its median patch, mean over images;
        `outliers`: share of patches beyond twice the median norm; `few`: how much of the attention of
        CLS to patches goes to the first 5 % of them; `twins`: mean cosine of neighbours in a row.
    """
    norms = states.norm(dim=-1)
    ratio = norms / norms.median(1, keepdim=True).values
    share = attention / attention.sum(1, keepdim=True)
    count = max(1, round(FEW * share.shape[1]))
    side = round(states.shape[1] ** 0.5)
    grid = torch.nn.functional.normalize(states, dim=-1).unflatten(1, (side, side))
    return {
        "largest": float(ratio.max(1).values.mean()),
        "outliers": float((ratio > 2).float().mean()),
        "few": float(share.topk(count, 1).values.sum(1).mean()),
        "twins": float((grid[:, :, 1:] * grid[:, :, :-1]).sum(-1).mean()),
    }


def look(model: Any, pixels: Iterable[Tensor]) -> dict[str, float]:
    """`figures` of a LLaVA model's tower on batches of pixels."""
    tower, layer = model.model.vision_tower, model.config.vision_feature_layer
    tower.set_attn_implementation("eager")
    states, attention = [], []
    with torch.inference_mode():
        for batch in pixels:
            out = tower(batch, output_hidden_states=True, output_attentions=True)
            states.append(out.hidden_states[layer][:, 1:])
            # states begin with those in front of the first layer, so from behind the places agree
            attention.append(out.attentions[layer][:, :, 0, 1:].mean(1))
    return figures(torch.cat(states), torch.cat(attention))


def both(data: Path, images: int) -> dict[str, dict[str, float]]:
    """`figures` of both reference models, each on pictures of its own suite."""
    from vtc.eval.common.loading import load
    from vtc.eval.suites import create_suite

    found = {}
    for name, options in (
        ("reference", {"scenes": images, "questions": 1}),
        ("photo", {"data": str(data)}),
    ):
        shown = list(
            dict.fromkeys(item.images[0] for item in create_suite(name, **options).items())
        )
        loaded = load(name)
        pixels = []
        for call in shown[:images]:
            given = loaded.processor.image_processor(call(), return_tensors="pt")["pixel_values"]
            pixels.append(given.flatten(0, -4).to(loaded.device))
        found[name] = look(loaded.model, pixels)
    return found


def table(found: dict[str, dict[str, float]]) -> str:
    """The figures in Markdown."""
    lines = [
        "| tower of | largest norm, in medians | patches beyond two medians, % | "
        "attention of CLS to 5 % of the patches, % | cosine of neighbours |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, row in found.items():
        lines.append(
            f"| `{name}` | {row['largest']:.2f} | {100 * row['outliers']:.1f} | "
            f"{100 * row['few']:.0f} | {row['twins']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of the suite `photo`")
    parser.add_argument("--images", type=int, default=100)
    args = parser.parse_args(argv)
    try:
        print(table(both(args.data, args.images)), end="")
    except VTCError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
