"""TokenUnify: how errors grow along a sequence, next-token training against the mixture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtc.discrete import CodeSpace, Condition, Generator, create_generator, masks
from vtc.discrete.backbone import KVCache
from vtc.eval.generation import pictures
from vtc.eval.generation.data import ImageData
from vtc.eval.generation.studies import parts
from vtc.eval.generation.studies.base import Metric, Row, Study

CASES: dict[str, dict[str, Any]] = {
    "next token": {"objective": "next_token", "times": 1},
    "mixture": {"objective": "mixture", "times": 1},
    "mixture, 3 x steps": {"objective": "mixture", "times": 3},
}
GRID, LEVELS = (8, 8), 4


def grey_codes(images: Tensor) -> Tensor:
    """Each pixel's grey as one of 4 levels, ids `[n, 64, 1]`: a tokenizer that cannot fail."""
    grey = (images.mean(dim=1).flatten(1) + 1) / 2
    return (grey * LEVELS).long().clamp(max=LEVELS - 1).unsqueeze(-1)


def to_images(ids: Tensor) -> Tensor:
    """The inverse of `grey_codes`, `[n, 3, 8, 8]`."""
    grey = ids[..., 0].float() / (LEVELS - 1) * 2 - 1
    return grey.unflatten(1, GRID).unsqueeze(1).expand(-1, 3, -1, -1)


@torch.no_grad()
def roll_out(model: Generator, ids: Tensor, given: Condition, prefix: int) -> Tensor:
    """Continue the first `prefix` true tokens by the likeliest token, one after the other."""
    cache, rope = KVCache(), model.positions()
    assert rope is not None
    made = ids[:, :prefix].clone()
    x = torch.cat([model.first(given, len(ids)), model.head.embed(made)], dim=1)
    mask: Tensor | None = masks.causal(x.shape[1])
    while True:
        here = slice(cache.length, cache.length + x.shape[1])
        h = model.run(x, given, mask, rope=(rope[0][here], rope[1][here]), cache=cache)
        token = model.head(h[:, -1:]).argmax(dim=-1)
        made = torch.cat([made, token], dim=1)
        if made.shape[1] == ids.shape[1]:
            return made
        x, mask = model.head.embed(token), None


@torch.no_grad()
def at_once(model: Generator, ids: Tensor, given: Condition, prefix: int) -> Tensor:
    """All tokens behind the prefix in one step, each from the prefix alone (next-all)."""
    count = ids.shape[1]
    unknown = (torch.arange(count) >= prefix).expand(len(ids), -1)
    logits = model.masked_logits(ids, unknown, given, masks.next_all(count, prefix))
    return torch.where(unknown.unsqueeze(-1), logits.argmax(dim=-1), ids)


def growth(errors: Tensor) -> float:
    """Exponent b of `cumulated errors ~ K ** b` behind the prefix, by least squares on logarithms.

    1 is a constant rate of errors, more is a rate that grows along the sequence.
    """
    total = errors.double().cumsum(0).numpy()
    steps = np.arange(1, len(total) + 1)
    known = (total > 0) & (steps >= 4)  # the first few are too coarse for a slope
    return float(np.polyfit(np.log(steps[known]), np.log(total[known]), 1)[0])


def run(case: dict[str, Any], settings: dict[str, Any], seed: int, folder: Path | None) -> Row:
    """Train one generator; continue held-out digits from their upper rows."""
    data: ImageData = parts.images("digits", 8)
    learn, held = parts.training(data), parts.held_out(data)
    torch.manual_seed(seed)
    space = CodeSpace(GRID[0] * GRID[1], (LEVELS,), GRID)
    options = {"objective": case["objective"], **settings["generator"]}
    model = create_generator("tiny_token_unify", space=space, **options)
    train = {**settings["train"], "steps": settings["train"]["steps"] * case["times"]}
    codes = grey_codes(learn["image"])
    model = parts.train_generator(model, codes, learn["label"], seed, train)
    truth, prefix = grey_codes(held["image"]), settings["prefix"]
    given = model.condition(held["label"])
    with torch.no_grad():
        taught = model.next_logits(truth, given).argmax(dim=-1)
    made = {
        "taught": taught,
        "free": roll_out(model, truth, given, prefix),
        "once": at_once(model, truth, given, prefix),
    }
    wrong = {name: (ids != truth)[:, prefix:, 0].float().mean(0) for name, ids in made.items()}
    row: Row = {f"error_{name}": float(error.mean()) for name, error in wrong.items()}
    row["accumulated"] = row["error_free"] - row["error_taught"]
    row["growth_free"] = growth(wrong["free"])
    row["curve_free"] = [round(value, 4) for value in wrong["free"].tolist()]
    row["curve_taught"] = [round(value, 4) for value in wrong["taught"].tolist()]
    row["curve_once"] = [round(value, 4) for value in wrong["once"].tolist()]
    if folder is not None:
        some = slice(0, settings["shown"])
        given_part = truth[some].clone()
        given_part[:, prefix:] = 0
        rows = {
            "given": to_images(given_part),
            "one after another": to_images(made["free"][some]),
            "all at once": to_images(made["once"][some]),
            "image": to_images(truth[some]),
        }
        number = list(CASES.values()).index(case)
        pictures.save_rows(rows, folder / f"rollout_{number}.png", 32)
    return row


def figure(rows: list[Row], path: Path) -> None:
    """Excess of the errors of a roll-out over those with true history, cumulated."""
    plt = pictures.pyplot()
    fig, axes = plt.subplots(1, 2, figsize=(10, 3.2))
    excess, total = {}, {}
    for case in CASES:
        mine = [row for row in rows if row["case"] == case]
        free = np.cumsum([row["curve_free"] for row in mine], axis=1)
        excess[case] = free - np.cumsum([row["curve_taught"] for row in mine], axis=1)
        total[case] = free
    x = range(1, len(rows[0]["curve_free"]) + 1)
    pictures.bands(axes[0], x, total)
    pictures.bands(axes[1], x, excess)
    axes[0].set(xlabel="tokens made", ylabel="wrong tokens so far, rolled out")
    axes[1].set(xlabel="tokens made", ylabel="of these, over true history")
    axes[0].legend()
    fig.tight_layout()
    pictures.write(fig, path)


STUDY = Study(
    name="rollout",
    title="Errors along a sequence: next token against the mixture (TokenUnify)",
    question=(
        "The lower 5 rows of a digit's 64 grey tokens are continued from the upper 3. Do errors pile "
        "up less after training on the mixture of masked, next and next-all tokens?"
    ),
    settings={
        "generator": {"dim": 48, "depth": 2},
        "train": {"steps": 500, "batch": 16, "lr": 4e-3, "ema": 0.98, "log_every": 500},
        "prefix": 24,
        "shown": 16,
    },
    cases=CASES,
    run=run,
    metrics=(
        Metric("error_taught", "errors with true history, share", 3),
        Metric("error_free", "errors rolled out", 3),
        Metric("accumulated", "rolled out minus true history", 3),
        Metric("growth_free", "growth exponent of rolled-out errors"),
        Metric("error_once", "errors, all at once", 3),
    ),
    compare=tuple(
        (key, mixture, "next token")
        for key in ("error_taught", "error_free", "accumulated", "growth_free")
        for mixture in ("mixture", "mixture, 3 x steps")
    ),
    figure=figure,
    limits=(
        "With as many steps the mixture sees a third of the next-token batches; with 3 times as many "
        "it sees as many, and the other two kinds on top.",
        "'All at once' means nothing for the model that was trained on next tokens alone; it has "
        "never seen a hidden token.",
        "Greedy continuation is compared with one true image, but several continuations are right; "
        "an exponent fitted over 40 tokens neither proves nor refutes a law in K.",
    ),
    pictures={f"rollout_{number}": name for number, name in enumerate(CASES)},
)
