"""Reconstruction by quantiser, all with the same bits a token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vtc.discrete.metrics import code_statistics, image_quality, reconstruct
from vtc.eval.generation import pictures
from vtc.eval.generation.studies import parts
from vtc.eval.generation.studies.base import Metric, Row, Study, values

CASES: dict[str, dict[str, Any]] = {
    "Bernoulli": {"quantizer": "bernoulli", "options": {"bits": 8}},
    "FSQ": {"quantizer": "fsq", "options": {"levels": [4, 4, 4, 4]}},
    "BSQ": {"quantizer": "bsq", "options": {"bits": 8}},
    "VQ, moving average": {
        "quantizer": "ema_vq",
        "options": {"size": 256, "code_dim": 16, "kmeans": True, "reset_below": 0.2},
    },
    "SimVQ": {"quantizer": "sim_vq", "options": {"size": 256, "code_dim": 16}},
    "IBQ": {
        "quantizer": "ibq",
        "options": {"size": 256, "code_dim": 16, "scale": 10.0, "entropy": 0.01},
    },
    "LFQ": {"quantizer": "lfq", "options": {"bits": 8, "entropy": 0.05}},
}


def run(case: dict[str, Any], settings: dict[str, Any], seed: int, folder: Path | None) -> Row:
    """Train one tokenizer and measure it on held-out images."""
    data = parts.images("digits", 8)
    tokenizer = parts.train_tokenizer(
        data, seed, settings["train"], settings["tokenizer"], patch=settings["patch"], **case
    )
    target = parts.held_out(data)["image"]
    output, _ = reconstruct(tokenizer, target)
    ids = parts.encode(tokenizer, parts.training(data)["image"])  # more images, surer entropies
    if folder is not None:
        shown = settings["shown"]
        pictures.save_grid(target[:shown], shown, folder / "quantizers_original.png", 40)
        name = f"quantizers_{case['quantizer']}.png"
        pictures.save_grid(output[:shown], shown, folder / name, 40)
    return {**image_quality(output, target), **code_statistics(ids, tokenizer.space)}


def figure(rows: list[Row], path: Path) -> None:
    """PSNR and code entropy, every seed a dot."""
    plt = pictures.pyplot()
    fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.2), sharey=True)
    for axis, key, label in zip(
        axes,
        ("psnr", "code_entropy"),
        ("PSNR of held-out images (dB)", "entropy of the code at one place (bits, 8 at most)"),
        strict=True,
    ):
        pictures.dots(axis, {case: values(rows, case, key) for case in CASES}, label)
    pictures.write(fig, path)


STUDY = Study(
    name="quantizers",
    title="Reconstruction by quantiser at equal bits",
    question=(
        "One 1-D tokenizer, 8 tokens of 8 bits for an 8 x 8 digit; only the quantiser changes. "
        "Which ones train, and how much of the code do they use?"
    ),
    settings={
        "tokenizer": "tiny_titok",
        "patch": 4,
        "train": {"steps": 800, "batch": 32, "log_every": 800},
        "shown": 16,
    },
    cases=CASES,
    run=run,
    metrics=(
        Metric("psnr", "PSNR, dB"),
        Metric("ssim", "SSIM", 3),
        Metric("usage", "codes in use, share"),
        Metric("code_entropy", "entropy of the code at one place, bits"),
    ),
    compare=tuple(("psnr", "Bernoulli", other) for other in CASES if other != "Bernoulli"),
    figure=figure,
    limits=(
        "Settings are defaults or the first that trained in an earlier trial, none was tuned: read "
        "'trains / collapses under plain settings', not a ranking of the methods.",
        "800 steps of 32 images are few; longer training may change the order.",
    ),
    pictures={
        "quantizers_original": "held-out images",
        **{f"quantizers_{case['quantizer']}": name for name, case in CASES.items()},
    },
)
