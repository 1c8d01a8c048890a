"""xAR: what is the next X: a token, a cell, a subsample or the whole image?"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch

from vtc.discrete import create_generator
from vtc.eval.generation import pictures
from vtc.eval.generation.studies import parts
from vtc.eval.generation.studies.base import Metric, Row, Study, values
from vtc.eval.generation.targets import Pixels

CASES: dict[str, dict[str, Any]] = {
    "single tokens": {"plan": "raster"},
    "cells of 2 x 2": {"plan": "cell:2"},
    "subsamples": {"plan": "subsample:2"},
    "whole image": {"plan": "whole"},
}
SOLVERS = {"euler": "Euler", "euler_maruyama": "Euler-Maruyama"}


def run(case: dict[str, Any], settings: dict[str, Any], seed: int, folder: Path | None) -> Row:
    """Train one generator on pixel patches; sample with equal calls a group and equal calls in all,
    by the ordinary and by the stochastic differential equation."""
    data, net = parts.images("digits", 8), parts.features("digits", 8)
    learn = parts.training(data)
    torch.manual_seed(seed)
    model = create_generator("tiny_xar_cell", **settings["generator"], **case)
    target = Pixels(model.space, model.config.channels, data.size)
    latents = target.encode(learn["image"])
    model = parts.train_generator(model, latents, learn["label"], seed, settings["train"])
    labels = parts.labels_of(settings["samples"], len(data.classes))
    groups = model.plan.groups
    row: Row = {"groups": groups}
    for method, (budget, steps) in itertools.product(
        SOLVERS,
        {
            "group": settings["calls_a_group"],
            "image": max(1, settings["calls_in_all"] // groups),
        }.items(),
    ):
        latents = model.sample(labels, seed=seed, steps=steps, method=method)
        made = target.decode(latents)
        row[f"distance_{budget}_{method}"] = net.distance(made)
        row[f"accuracy_{budget}_{method}"] = net.agreement(made, labels)
        if folder is not None and (budget, method) == ("image", "euler"):
            plan = case["plan"].partition(":")[0]
            pictures.save_grid(made[:20], 20, folder / f"cells_{plan}.png", 32)
    return row


def figure(rows: list[Row], path: Path) -> None:
    """Distance at both budgets, every seed a dot."""
    plt = pictures.pyplot()
    fig, axes = plt.subplots(1, 2, figsize=(9.5, 2.4), sharey=True)
    for axis, key, label in zip(
        axes,
        ("distance_group_euler", "distance_image_euler"),
        ("Frechet distance, 12 Euler calls a group", "Frechet distance, 48 Euler calls an image"),
        strict=True,
    ):
        pictures.dots(axis, {case: values(rows, case, key) for case in CASES}, label)
    pictures.write(fig, path)


STUDY = Study(
    name="cells",
    title="Cells against single tokens and the whole image (xAR)",
    question=(
        "Flow matching of a digit's 16 patches of 2 x 2 pixels, group after group. Which group is "
        "best: one patch, a cell of 4 neighbours, 4 patches spread over the image, or all 16?"
    ),
    settings={
        "generator": {"grid": 4, "channels": 4, "dim": 64, "depth": 2},
        "train": {"steps": 600, "batch": 32, "lr": 4e-3, "ema": 0.98, "log_every": 600},
        "samples": 500,
        "calls_a_group": 12,
        "calls_in_all": 48,
    },
    cases=CASES,
    run=run,
    metrics=(
        *(
            Metric(f"distance_{budget}_{method}", f"Frechet distance, {calls}, {name}")
            for budget, calls in (("group", "12 calls a group"), ("image", "48 calls an image"))
            for method, name in SOLVERS.items()
        ),
        Metric("accuracy_image_euler", "class accuracy, 48 calls an image, Euler", 3),
    ),
    compare=tuple(
        (key, "cells of 2 x 2", other)
        for key in ("distance_group_euler", "distance_image_euler")
        for other in CASES
        if other != "cells of 2 x 2"
    ),
    figure=figure,
    limits=(
        "The distance is taken in 32 features of a classifier trained on these digits; it is not FID.",
        "No guidance; xAR works on latents of a VAE with 256 positions, here there are 16 patches of "
        "raw pixels.",
        "With 48 calls an image a single token gets 3. The stochastic solver (xAR's own) needs more "
        "than that, so its column says more about the solver than about the groups.",
    ),
    pictures={
        f"cells_{case['plan'].partition(':')[0]}": f"{name}, 48 Euler calls"
        for name, case in CASES.items()
    },
)
