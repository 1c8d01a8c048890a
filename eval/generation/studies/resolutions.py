"""1-D binary latents decoded at two resolutions from the same tokens (Instella-T2I)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtc.discrete import ImageTokenizer, Noise, create_tokenizer
from vtc.discrete.metrics import code_statistics, image_quality
from vtc.eval.generation import pictures
from vtc.eval.generation.config import TrainSettings
from vtc.eval.generation.data import TensorImages, take
from vtc.eval.generation.loop import fit
from vtc.eval.generation.studies import parts
from vtc.eval.generation.studies.base import Metric, Row, Study, values

SMALL, LARGE = 16, 32
CASES: dict[str, dict[str, Any]] = {
    "trained at 16": {"sizes": [SMALL]},
    "trained at 16 and 32": {"sizes": [SMALL, LARGE]},
}


class Resolutions(nn.Module):
    """Read the small image and draw it at each of the sizes.

    `batch["image"]` has the small size, `batch["large"]` shows the same scenes at the large one.
    """

    def __init__(self, tokenizer: ImageTokenizer, sizes: list[int]) -> None:
        super().__init__()
        self.tokenizer, self.sizes = tokenizer, sizes

    def forward(self, batch: dict[str, Tensor], noise: Noise) -> dict[str, Tensor]:
        """The mean squared error over the sizes."""
        views = {SMALL: batch["image"], LARGE: batch["large"]}
        codes = self.tokenizer.encode(views[SMALL], noise)
        errors = [
            F.mse_loss(self.tokenizer.decode(codes.z, (size, size)), views[size])
            for size in self.sizes
        ]
        return {"loss": torch.stack(errors).mean() + codes.loss}


@torch.no_grad()
def run(case: dict[str, Any], settings: dict[str, Any], seed: int, folder: Path | None) -> Row:
    """Train one tokenizer; draw the tokens of held-out images at both sizes."""
    small = parts.images("glyphs", SMALL, settings["count"])
    large = parts.images("glyphs", LARGE, settings["count"])
    learn, shown = take(small.train), take(large.train)["image"]
    torch.manual_seed(seed)
    tokenizer = create_tokenizer("tiny_instella_1d", size=SMALL, **settings["tokenizer"])
    with torch.enable_grad():
        best, _ = fit(
            Resolutions(tokenizer, case["sizes"]),
            TensorImages(learn["image"], learn["label"], large=shown),
            TrainSettings(**settings["train"]),
            seed,
        )
    tokenizer = best.tokenizer
    views = {SMALL: parts.held_out(small)["image"], LARGE: parts.held_out(large)["image"]}
    ids = parts.encode(tokenizer, views[SMALL])
    made = {size: tokenizer.decode(ids, (size, size)) for size in views}
    row: Row = {}
    for size, target in views.items():
        quality = image_quality(made[size], target)
        row[f"psnr_{size}"], row[f"ssim_{size}"] = quality["psnr"], quality["ssim"]
    row["bit_entropy"] = code_statistics(ids, tokenizer.space)["bit_entropy"]
    enlarged = F.interpolate(made[SMALL], scale_factor=2, mode="bicubic")
    row["psnr_enlarged"] = image_quality(enlarged, views[LARGE])["psnr"]
    row["gain"] = row["psnr_32"] - row["psnr_enlarged"]
    mean = shown.mean(0, keepdim=True).expand_as(views[LARGE])
    row["psnr_mean_image"] = image_quality(mean, views[LARGE])["psnr"]
    if folder is not None:
        some = slice(0, settings["shown"])
        name = "_".join(str(size) for size in case["sizes"])
        rows = {
            "image, 16 px": views[SMALL][some],
            "tokens drawn at 16": made[SMALL][some],
            "the same enlarged": enlarged[some],
            "same tokens drawn at 32": made[LARGE][some],
            "image, 32 px": views[LARGE][some],
        }
        pictures.save_rows(rows, folder / f"resolutions_{name}.png", 64)
    return row


def figure(rows: list[Row], path: Path) -> None:
    """PSNR at 16 and at 32 pixels."""
    plt = pictures.pyplot()
    fig, axis = plt.subplots(figsize=(7, 2.6))
    lines = {}
    for case in CASES:
        lines[f"{case}: drawn at 16"] = values(rows, case, "psnr_16")
        lines[f"{case}: drawn at 32"] = values(rows, case, "psnr_32")
        lines[f"{case}: 16 enlarged"] = values(rows, case, "psnr_enlarged")
    pictures.dots(axis, lines, "PSNR of held-out scenes read at 16 pixels (dB)")
    pictures.write(fig, path)


STUDY = Study(
    name="resolutions",
    title="The same 1-D tokens drawn at two resolutions",
    question=(
        "8 tokens of 8 bits of a letter. Can the tokens of a 16-pixel image be drawn at 32 "
        "pixels, better than by enlarging the 16-pixel result?"
    ),
    settings={
        "tokenizer": {"patch": 4, "tokens": 8},
        "count": 3000,
        "train": {"steps": 2000, "batch": 16, "log_every": 2000},
        "shown": 12,
    },
    cases=CASES,
    run=run,
    metrics=(
        Metric("psnr_16", "drawn at 16: PSNR, dB"),
        Metric("psnr_32", "drawn at 32: PSNR, dB"),
        Metric("psnr_enlarged", "drawn 16, enlarged to 32 (bicubic)"),
        Metric("gain", "gain of drawing at 32 over enlarging, dB"),
        Metric("ssim_32", "drawn at 32: SSIM", 3),
        Metric("bit_entropy", "bit entropy", 3),
        Metric("psnr_mean_image", "mean image at 32, for scale"),
    ),
    compare=(
        ("psnr_32", "trained at 16 and 32", "trained at 16"),
        ("psnr_16", "trained at 16 and 32", "trained at 16"),
    ),
    effects=tuple(("gain", case) for case in CASES),
    figure=figure,
    limits=(
        "Both trainings take as many steps, but a step that draws at both sizes costs more and has to "
        "serve both.",
        "Letters are simple, and blurred by few steps; nothing here speaks for photographs.",
    ),
    pictures={
        "resolutions_16_32": "trained at 16 and 32",
        "resolutions_16": "trained at 16 only: at 32 the positions are in between those it knows",
    },
)
