"""ETT: tuning a tokenizer through a caption loss, and what that does to reconstruction."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vtc.discrete import Captioner, CodeProjector, ImageTokenizer, Noise
from vtc.discrete.backbone import TransformerConfig
from vtc.discrete.losses import joint_caption_loss, reconstruction_loss
from vtc.discrete.metrics import code_statistics, image_quality, reconstruct
from vtc.eval.generation import pictures
from vtc.eval.generation.config import TrainSettings
from vtc.eval.generation.data import ImageData
from vtc.eval.generation.loop import fit
from vtc.eval.generation.render import WORDS
from vtc.eval.generation.studies import parts
from vtc.eval.generation.studies.base import Metric, Row, Study, values

CASES: dict[str, dict[str, Any]] = {
    "indices, frozen": {"source": "ids", "tune": False, "alpha": 0.0},
    "embeddings, frozen": {"source": "embedding", "tune": False, "alpha": 0.0},
    "embeddings, tuned, caption only": {"source": "embedding", "tune": True, "alpha": 0.0},
    "embeddings, tuned, joint 0.25": {"source": "embedding", "tune": True, "alpha": 0.25},
    "embeddings, tuned, joint 1": {"source": "embedding", "tune": True, "alpha": 1.0},
}
JOINT = "embeddings, tuned, joint 0.25"


class CaptionTask(nn.Module):
    """Caption images; the tokenizer is frozen, or tuned by the caption and its own loss."""

    def __init__(
        self, tokenizer: ImageTokenizer, captioner: Captioner, tune: bool, alpha: float
    ) -> None:
        super().__init__()
        self.tokenizer, self.captioner = tokenizer.requires_grad_(tune), captioner
        self.tune, self.alpha = tune, alpha

    def forward(self, batch: dict[str, Tensor], noise: Noise) -> dict[str, Tensor]:
        """The joint loss and its parts."""
        if not self.tune:
            self.tokenizer.eval()
        codes = self.tokenizer.encode(batch["image"], noise)
        caption = self.captioner.loss(codes, batch["caption"])
        if not self.tune or not self.alpha:
            return {"loss": caption}
        output = self.tokenizer.decode(codes.z, batch["image"].shape[2:])
        own = reconstruction_loss(output, batch["image"], "mse") + codes.loss
        return {"loss": joint_caption_loss(caption, own, self.alpha), "caption": caption}


@functools.lru_cache(maxsize=1)
def tokenizer_of(seed: int, count: int, options: str, steps: int, batch: int) -> ImageTokenizer:
    """One tokenizer a seed, trained on reconstruction; every case of that seed starts from it."""
    width, stride, codes = (int(number) for number in options.split(","))
    train = {"steps": steps, "batch": batch, "lr": 4e-3, "ema": 0.98, "log_every": steps}
    data = parts.images("shapes", 16, count)
    return parts.train_tokenizer(
        data, seed, train, "tiny_ett", width=width, stride=stride, codes=codes
    )


@functools.lru_cache(maxsize=1)
def captioner_of(
    seed: int, source: str, count: int, dim: int, train: str, tokenizer: str
) -> Captioner:
    """One captioner a seed and kind of input, trained while the tokenizer is frozen (stage 1)."""
    data = parts.images("shapes", 16, count)
    frozen = copy.deepcopy(tokenizer_of(seed, count, **json.loads(tokenizer)))
    torch.manual_seed(seed)
    config = TransformerConfig(dim, 2, 4, positions=frozen.space.tokens + 8)
    projector = CodeProjector(frozen.space, frozen.quantizer.dim, dim, source)
    task = CaptionTask(frozen, Captioner(config, len(WORDS), projector), False, 0.0)
    best, _ = fit(task, data.train, TrainSettings(**json.loads(train)), seed)
    return best.captioner


def word_accuracy(task: CaptionTask, images: Tensor, captions: Tensor) -> list[float]:
    """Share of right words in each place of the caption, likeliest word given the true ones."""
    with torch.no_grad():
        logits = task.captioner(task.tokenizer.encode(images), captions)
    return (logits.argmax(dim=-1) == captions).float().mean(0).tolist()


def run(case: dict[str, Any], settings: dict[str, Any], seed: int, folder: Path | None) -> Row:
    """Train on with the tokenizer frozen or not (stage 2), and measure words and pixels."""
    data: ImageData = parts.images("shapes", 16, settings["count"])
    tokenizer = copy.deepcopy(tokenizer_of(seed, settings["count"], **settings["tokenizer"]))
    captioner = copy.deepcopy(
        captioner_of(
            seed,
            case["source"],
            settings["count"],
            settings["dim"],
            json.dumps(settings["train"]),
            json.dumps(settings["tokenizer"]),
        )
    )
    task = CaptionTask(tokenizer, captioner, case["tune"], case["alpha"])
    best, _ = fit(task, data.train, TrainSettings(**settings["tune"]), seed)
    held = parts.held_out(data)
    words = word_accuracy(best, held["image"], held["caption"])
    output, ids = reconstruct(best.tokenizer, held["image"])
    if folder is not None:
        some, number = settings["shown"], list(CASES.values()).index(case)
        pictures.save_grid(output[:some], some, folder / f"tuning_{number}.png", 32)
        pictures.save_grid(held["image"][:some], some, folder / "tuning_original.png", 32)
    names = ("size", "colour", "shape", "place")
    return {
        "words": sum(words) / len(words),
        **{f"word_{name}": value for name, value in zip(names, words, strict=True)},
        "psnr": image_quality(output, held["image"])["psnr"],
        "usage": code_statistics(ids, best.tokenizer.space)["usage"],
    }


def figure(rows: list[Row], path: Path) -> None:
    """Right words and PSNR, every seed a dot."""
    plt = pictures.pyplot()
    fig, axes = plt.subplots(1, 2, figsize=(9.5, 2.6), sharey=True)
    for axis, key, label in zip(
        axes,
        ("words", "psnr"),
        ("right words of held-out captions, share", "PSNR of held-out images (dB)"),
        strict=True,
    ):
        pictures.dots(axis, {case: values(rows, case, key) for case in CASES}, label)
    pictures.write(fig, path)


STUDY = Study(
    name="tuning",
    title="Tuning the tokenizer through a caption loss (ETT)",
    question=(
        "A small text decoder names size, colour, shape and place of a coloured shape from the codes "
        "of an IBQ tokenizer. First the decoder learns, then it goes on with the tokenizer frozen or "
        "tuned. Indices or embeddings: what is gained in words, what is lost in pixels?"
    ),
    settings={
        "count": 2000,
        "tokenizer": {"options": "8,4,256", "steps": 400, "batch": 16},
        "dim": 48,
        "train": {"steps": 600, "batch": 16, "lr": 2e-3, "ema": 0.98, "log_every": 600},
        "tune": {"steps": 400, "batch": 16, "lr": 1e-3, "ema": 0.98, "log_every": 400},
        "shown": 16,
    },
    cases=CASES,
    run=run,
    metrics=(
        Metric("words", "right words, share", 3),
        Metric("word_shape", "right shape", 3),
        Metric("word_place", "right place", 3),
        Metric("psnr", "PSNR, dB"),
        Metric("usage", "codes in use, share", 3),
    ),
    compare=(
        ("words", "embeddings, frozen", "indices, frozen"),
        ("words", JOINT, "embeddings, frozen"),
        ("words", "embeddings, tuned, caption only", JOINT),
        ("psnr", "embeddings, tuned, caption only", "embeddings, frozen"),
        ("psnr", JOINT, "embeddings, frozen"),
        ("psnr", JOINT, "embeddings, tuned, caption only"),
    ),
    figure=figure,
    limits=(
        "The language model is a 2-layer decoder trained from scratch with a vocabulary of 17 words; "
        "ETT tunes a pretrained one.",
        "The tokenizer is under-trained when tuning starts, so the joint loss can still improve its "
        "pixels, which a converged tokenizer would not show.",
    ),
    pictures={
        "tuning_original": "held-out images",
        **{f"tuning_{number}": name for number, name in enumerate(CASES)},
    },
)
