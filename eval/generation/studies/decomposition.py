"""ELM: how the bits of a token are split into sub-codes, for next-token and masked models."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from vtc.discrete import Guidance, ImageTokenizer, create_generator
from vtc.discrete.codes import regroup
from vtc.eval.generation import pictures
from vtc.eval.generation.studies import parts
from vtc.eval.generation.studies.base import Metric, Row, Study, values

CASES: dict[str, dict[str, Any]] = {
    f"{kind} {name}": {"generator": preset, "parts": int(name[0])}
    for kind, preset in (("AR", "tiny_elm_ar"), ("MLM", "tiny_elm_mlm"))
    for name in ("1-8", "2-4", "4-2")
}
CASES |= {
    f"MLM {name}, parallel": {"generator": "tiny_elm_mlm", "parts": int(name[0]), "head": "index"}
    for name in ("1-8", "2-4", "4-2")
}


@functools.lru_cache(maxsize=1)
def tokenizer_of(seed: int, preset: str, steps: int, batch: int) -> ImageTokenizer:
    """One tokenizer a seed; the generators of that seed share it."""
    train = {"steps": steps, "batch": batch, "log_every": steps}
    data = parts.images("digits", 8)
    options: dict[str, Any] = {"quantizer": "bernoulli", "options": {"bits": 8}}
    return parts.train_tokenizer(data, seed, train, preset, patch=4, **options)


def run(case: dict[str, Any], settings: dict[str, Any], seed: int, folder: Path | None) -> Row:
    """Train one generator on the seed's tokenizer and measure its samples."""
    data, net = parts.images("digits", 8), parts.features("digits", 8)
    tokenizer = tokenizer_of(seed, **settings["tokenizer"])
    space = tokenizer.space.split(case["parts"])
    learn = parts.training(data)
    codes = regroup(parts.encode(tokenizer, learn["image"]), tokenizer.space, space)
    torch.manual_seed(seed)
    head = {"head": case["head"]} if "head" in case else {}
    model = create_generator(case["generator"], space=space, **head, **settings["generator"])
    model = parts.train_generator(model, codes, learn["label"], seed, settings["train"])
    labels = parts.labels_of(settings["samples"], len(data.classes))
    row: Row = {}
    for scale in (1.0, 2.0):
        guidance = None if scale == 1 else Guidance(scale, "linear")
        ids = model.sample(labels, guidance=guidance, seed=seed)
        with torch.no_grad():
            made = tokenizer.decode(regroup(ids, space, tokenizer.space))
        row[f"distance_{scale:.0f}"] = net.distance(made)
        row[f"accuracy_{scale:.0f}"] = net.agreement(made, labels)
        if folder is not None and scale == 2:
            pictures.save_grid(made[:20], 20, folder / f"{_file(case)}.png", 32)
    with torch.no_grad():
        real = tokenizer.decode(parts.encode(tokenizer, parts.held_out(data)["image"]))
    row["distance_reconstructions"] = net.distance(real)
    return row


def _file(case: dict[str, Any]) -> str:
    head = f"_{case['head']}" if "head" in case else ""
    return f"decomposition_{case['generator'][9:]}_{case['parts']}{head}"


def figure(rows: list[Row], path: Path) -> None:
    """Distance and class accuracy, every seed a dot."""
    plt = pictures.pyplot()
    fig, axes = plt.subplots(1, 3, figsize=(11, 3.4), sharey=True)
    for axis, key, label in zip(
        axes,
        ("distance_1", "distance_2", "accuracy_1"),
        (
            "Frechet distance, no guidance",
            "Frechet distance, guidance 2",
            "class accuracy, no guidance",
        ),
        strict=True,
    ):
        pictures.dots(axis, {case: values(rows, case, key) for case in CASES}, label)
    pictures.write(fig, path)


def _pairs(key: str) -> tuple[tuple[str, str, str], ...]:
    splits = [(key, f"{k} {a}", f"{k} {b}") for k in ("AR", "MLM") for a, b in SPLITS]
    names = ("1-8", "2-4", "4-2")
    kinds = [(key, f"AR {name}", f"MLM {name}") for name in names]
    heads = [(key, f"MLM {name}, parallel", f"MLM {name}") for name in names]
    return (*splits, *kinds, *heads)


SPLITS = (("1-8", "2-4"), ("2-4", "4-2"))
STUDY = Study(
    name="decomposition",
    title="Sub-codes of a token: next-token and masked models (ELM)",
    question=(
        "The 8 bits of a token as 1, 2 or 4 sub-codes (1-8, 2-4, 4-2). AR predicts the next token, its "
        "sub-codes in parallel; MLM predicts masked tokens, its sub-codes as positions of their own "
        "(ELM), or in parallel like AR. Which samples better, at equal training steps?"
    ),
    settings={
        "tokenizer": {"preset": "tiny_titok", "steps": 700, "batch": 32},
        "generator": {"dim": 48, "depth": 2},
        "train": {"steps": 500, "batch": 32, "lr": 4e-3, "ema": 0.98, "log_every": 500},
        "samples": 500,
    },
    cases=CASES,
    run=run,
    metrics=(
        Metric("distance_1", "Frechet distance, no guidance"),
        Metric("accuracy_1", "class accuracy, no guidance", 3),
        Metric("distance_2", "Frechet distance, guidance 2"),
        Metric("accuracy_2", "class accuracy, guidance 2", 3),
        Metric("distance_reconstructions", "distance of held-out reconstructions, for scale"),
    ),
    compare=(*_pairs("distance_1"), *_pairs("distance_2")),
    figure=figure,
    limits=(
        "The distance is taken in 32 features of a classifier trained on these digits; it is not FID.",
        "With more sub-codes the masked model has a longer sequence (ELM's own design), so its step "
        "costs more; steps are equal, time is not.",
        "ELM's masked model gives the sub-codes of a token one position and one mask vector; here each "
        "also has a learned vector of its own, or all would be predicted alike where a token is hidden.",
        "8 bits a token are few: ELM's argument for splitting is about vocabularies of 65 536 and more.",
    ),
    pictures={_file(case): f"{name}, guidance 2" for name, case in CASES.items()},
)
