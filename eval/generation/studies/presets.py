"""Every tiny preset, trained from the config that comes with it."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from vtc.eval.generation import experiments, pictures
from vtc.eval.generation.config import load_experiment
from vtc.eval.generation.studies.base import Metric, Row, Study, values

SHOWN = 40  # samples of a picture
CONFIGS = (
    "digits_ar",
    "digits_masked",
    "digits_bits",
    "digits_diffusion",
    "digits_causal",
    "digits_mixture",
    "digits_pixels",
    "shapes_ibq",
    "shapes_text",
    "glyphs_masked",
)


#: With the whole text of a config, so that rows of an older one are not taken.
CASES: dict[str, dict[str, Any]] = {
    name: {"config": name, "experiment": load_experiment(name).to_yaml()} for name in CONFIGS
}


def run(case: dict[str, Any], settings: dict[str, Any], seed: int, folder: Path | None) -> Row:
    """All four steps of a config."""
    sections = ("tokenizer", "generator")
    more = [
        f"{s}.train.{key}={value}" for s in sections for key, value in settings["train"].items()
    ]
    experiment = load_experiment(case["config"], [f"seed={seed}", *more])
    row: Row = {}
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch)
        start = time.process_time()
        if experiment.generator.target != "pixels":
            experiments.train_tokenizer(experiment, output)
            row["tokenizer_minutes"] = (time.process_time() - start) / 60
        start = time.process_time()
        experiments.train_generator(experiment, output)
        row["generator_minutes"] = (time.process_time() - start) / 60
        images, _ = experiments.sample(experiment, output)
        report = experiments.measure(experiment, output)
        if folder is not None:
            stem = folder / f"presets_{case['config']}"
            pictures.save_grid(images[:SHOWN], SHOWN // 2, Path(f"{stem}_samples.png"), 32)
            if (output / "reconstructions.png").is_file():
                shutil.copy(output / "reconstructions.png", f"{stem}_reconstructions.png")
    for name in ("psnr", "ssim", "usage"):
        row[name] = report.get("reconstruction", {}).get(name)
    row["distance_held_out"] = report["distance_of_held_out_images"]
    row["classifier_accuracy"] = report["classifier_accuracy"]
    return {**row, **{name: report["samples"][name] for name in ("distance", "class_accuracy")}}


def figure(rows: list[Row], path: Path) -> None:
    """Minutes of both trainings, every seed a dot."""
    plt = pictures.pyplot()
    fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.4), sharey=True)
    for axis, key in zip(axes, ("tokenizer", "generator"), strict=True):
        lines = {case: values(rows, case, f"{key}_minutes") for case in CASES}
        pictures.dots(axis, lines, f"training of the {key} (CPU minutes, one thread)")
    pictures.write(fig, path)


STUDY = Study(
    name="presets",
    title="Every tiny preset, trained from the config that comes with it",
    question=(
        "Does each tiny tokenizer and generator train, and how long does it take on one CPU thread? "
        "Nothing is compared here: data, sizes and steps differ."
    ),
    settings={"train": {}},
    cases=CASES,
    run=run,
    metrics=(
        Metric("tokenizer_minutes", "tokenizer, CPU minutes"),
        Metric("generator_minutes", "generator, CPU minutes"),
        Metric("psnr", "PSNR, dB"),
        Metric("usage", "codes in use, share"),
        Metric("distance", "Frechet distance of samples"),
        Metric("class_accuracy", "class accuracy of samples", 3),
        Metric("distance_held_out", "distance of held-out images, for scale"),
        Metric("classifier_accuracy", "classifier on held-out images", 3),
    ),
    compare=(),
    figure=figure,
    limits=(
        "The distance is taken in 32 features of a classifier trained on the same images; it is not "
        "FID, and the three kinds of images have nets of their own.",
    ),
    pictures={
        f"presets_{name}_{kind}": f"{name}, {text}"
        for name in CONFIGS
        for kind, text in (
            ("reconstructions", "held-out images, and below them their reconstructions"),
            ("samples", "samples"),
        )
        if kind == "samples" or load_experiment(name).generator.target != "pixels"
    },
    seeds=1,
)
