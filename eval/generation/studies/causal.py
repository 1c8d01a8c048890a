"""SEED: causal tokens, what a prefix is worth, and the contrast on the last token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vtc.discrete import ImageTokenizer, Noise, create_tokenizer
from vtc.discrete.losses import contrastive_last_token
from vtc.discrete.metrics import image_quality
from vtc.eval.generation import pictures
from vtc.eval.generation.config import TrainSettings
from vtc.eval.generation.loop import fit
from vtc.eval.generation.studies import parts
from vtc.eval.generation.studies.base import Metric, Row, Study
from vtc.eval.generation.tasks import TokenizerTask

CASES: dict[str, dict[str, Any]] = {
    "causal, whole": {"causal": True, "prefix": False, "contrast": 0.0},
    "causal, prefixes": {"causal": True, "prefix": True, "contrast": 0.0},
    "causal, prefixes, contrast": {"causal": True, "prefix": True, "contrast": 0.1},
    "both ways, prefixes": {"causal": False, "prefix": True, "contrast": 0.0},
}


class Contrast(nn.Module):
    """Reconstruction plus SEED's contrast of the last token with an embedding of the label."""

    def __init__(
        self, tokenizer: ImageTokenizer, classes: int, prefix: bool, weight: float
    ) -> None:
        super().__init__()
        self.pixels, self.weight = TokenizerTask(tokenizer, prefix=prefix), weight
        dim = tokenizer.quantizer.dim
        self.image, self.text = nn.Linear(dim, 32), nn.Embedding(classes, 32)

    def forward(self, batch: dict[str, Tensor], noise: Noise) -> dict[str, Tensor]:
        """Both losses; the codes of the contrast are drawn anew."""
        parts = self.pixels(batch, noise)
        if not self.weight:
            return {"loss": parts["loss"]}
        z = self.pixels.tokenizer.encode(batch["image"], noise).z
        contrast = contrastive_last_token(self.image(z), self.text(batch["label"]), 0.2)
        return {"loss": parts["loss"] + self.weight * contrast}


def probe(train: Tensor, labels: Tensor, valid: Tensor, truth: Tensor) -> float:
    """Held-out accuracy of a linear classifier on bits `[n, D]`."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=300).fit(train.numpy(), labels.numpy())
    return float(model.score(valid.numpy(), truth.numpy()))


@torch.no_grad()
def run(case: dict[str, Any], settings: dict[str, Any], seed: int, folder: Path | None) -> Row:
    """Train one tokenizer; decode every prefix, and name the digit from single tokens."""
    data = parts.images("digits", 8)
    torch.manual_seed(seed)
    tokenizer = create_tokenizer("tiny_seed_causal", causal=case["causal"], **settings["tokenizer"])
    task = Contrast(tokenizer, len(data.classes), case["prefix"], case["contrast"])
    with torch.enable_grad():
        best, _ = fit(task, data.train, TrainSettings(**settings["train"]), seed)
    tokenizer = best.pixels.tokenizer
    learn, held = parts.training(data), parts.held_out(data)
    codes, ids = parts.encode(tokenizer, learn["image"]), parts.encode(tokenizer, held["image"])
    tokens = tokenizer.space.tokens
    drawn = {k: tokenizer.decode(ids[:, :k]) for k in range(1, tokens + 1)}
    curve = [image_quality(image, held["image"])["psnr"] for image in drawn.values()]
    steps = torch.tensor(curve).diff()
    row: Row = {
        "curve": curve,
        "psnr": curve[-1],
        "psnr_half": curve[tokens // 2 - 1],
        "rises": float((steps > 0).float().mean()),
        "least_gain": float(steps.min()),
    }
    answer = {"labels": learn["label"], "truth": held["label"]}
    for name, where in (("first", [0]), ("last", [-1]), ("all", list(range(tokens)))):
        bits = [x[:, where].flatten(1).float() for x in (codes, ids)]
        row[f"probe_{name}"] = probe(bits[0], answer["labels"], bits[1], answer["truth"])
    if folder is not None:
        some = slice(0, settings["shown"])
        rows = {f"{k} token{'s' * (k > 1)}": image[some] for k, image in drawn.items()}
        rows["image"] = held["image"][some]
        number = list(CASES.values()).index(case)
        pictures.save_rows(rows, folder / f"causal_{number}.png", 32)
    return row


def figure(rows: list[Row], path: Path) -> None:
    """PSNR over the prefix, and the probes."""
    plt = pictures.pyplot()
    fig, axes = plt.subplots(1, 2, figsize=(10, 3.2))
    curves = {case: [r["curve"] for r in rows if r["case"] == case] for case in CASES}
    count = len(rows[0]["curve"])
    pictures.bands(axes[0], range(1, count + 1), curves)
    axes[0].set(xlabel="tokens decoded", ylabel="PSNR (dB)")
    axes[0].legend()
    last = {case: [r["probe_last"] for r in rows if r["case"] == case] for case in CASES}
    pictures.dots(axes[1], last, "digit named from the last token alone (linear probe)")
    fig.tight_layout()
    pictures.write(fig, path)


STUDY = Study(
    name="causal",
    title="Causal tokens: prefixes and the last-token contrast (SEED)",
    question=(
        "8 tokens of 8 bits of a digit. Does decoding get better with every token, does that come "
        "from the causal mask or from training on prefixes, and does the contrast put the meaning "
        "into the last token?"
    ),
    settings={
        "tokenizer": {"patch": 4, "quantizer": "bernoulli", "options": {"bits": 8}},
        "train": {"steps": 1000, "batch": 16, "log_every": 1000},
        "shown": 16,
    },
    cases=CASES,
    run=run,
    metrics=(
        Metric("psnr", "all 8 tokens: PSNR, dB"),
        Metric("psnr_half", "first 4 tokens: PSNR, dB"),
        Metric("rises", "added tokens that raise PSNR, share"),
        Metric("least_gain", "smallest gain of a token, dB"),
        Metric("probe_first", "probe of the first token", 3),
        Metric("probe_last", "probe of the last token", 3),
        Metric("probe_all", "probe of all tokens", 3),
    ),
    compare=(
        ("psnr_half", "causal, prefixes", "causal, whole"),
        ("psnr_half", "causal, prefixes", "both ways, prefixes"),
        ("psnr", "causal, prefixes", "causal, whole"),
        ("psnr", "causal, prefixes", "both ways, prefixes"),
        ("probe_last", "causal, prefixes, contrast", "causal, prefixes"),
        ("probe_all", "causal, prefixes, contrast", "causal, prefixes"),
        ("psnr", "causal, prefixes, contrast", "causal, prefixes"),
    ),
    figure=figure,
    limits=(
        "SEED contrasts with captions and decodes by a diffusion model; here the text is one of ten "
        "label embeddings and the decoder draws pixels. Bits replace SEED's codebook, which hardly "
        "trains at this size.",
        "A batch holds the same digit several times, which the contrast counts as negatives.",
    ),
    pictures={f"causal_{number}": name for number, name in enumerate(CASES)},
)
