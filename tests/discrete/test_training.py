"""Tiny presets learn the scikit-learn digits (slow; thresholds are far below what one run gives)."""

import pytest
import torch
from torch import Tensor

from vtc.discrete import (
    create_generator,
    create_tokenizer,
    frechet_distance,
    reconstruction_report,
)
from vtc.discrete.generator import Generator

pytestmark = pytest.mark.slow


class Digits:
    """1500 training and 297 validation images `[n, 3, 8, 8]` in [-1, 1], and a small classifier."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        data = load_digits()
        images = torch.tensor(data.images).float()[:, None].expand(-1, 3, -1, -1) / 8 - 1
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        self.images, self.labels = images[order].contiguous(), torch.tensor(data.target)[order]
        self.train, self.valid = slice(0, 1500), slice(1500, None)
        torch.manual_seed(0)
        self.features = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU())
        self.classifier = torch.nn.Sequential(self.features, torch.nn.Linear(32, 10))

        def loss(batch: Tensor) -> Tensor:
            logits = self.classifier(self.flat(self.images[batch]))
            return torch.nn.functional.cross_entropy(logits, self.labels[batch])

        fit(self.classifier, loss, 600, lr=1e-2)

    def flat(self, images: Tensor) -> Tensor:
        return images[:, 0].flatten(1)

    def distance(self, samples: Tensor) -> float:
        """Frechet distance to the training images in the classifier's 32 features."""
        with torch.no_grad():
            real = self.features(self.flat(self.images[self.train]))
            return frechet_distance(self.features(self.flat(samples.clamp(-1, 1))), real)

    def accuracy(self, samples: Tensor, labels: Tensor) -> float:
        """Share of samples that the classifier calls what they were meant to be."""
        with torch.no_grad():
            called = self.classifier(self.flat(samples.clamp(-1, 1))).argmax(1)
        return float((called == labels).float().mean())


def fit(model: torch.nn.Module, loss, steps: int, lr: float = 2e-3, batch: int = 64) -> None:  # type: ignore[no-untyped-def]
    """AdamW on a one-cycle schedule; `loss` takes indices of training images."""
    optimiser = torch.optim.AdamW(model.parameters(), lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps)
    draw = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(steps):
        optimiser.zero_grad()
        loss(torch.randint(1500, (batch,), generator=draw)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    model.eval()


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits()


def fit_tokenizer(digits: Digits, name: str, steps: int = 700, **options):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    tokenizer = create_tokenizer(name, **options)
    fit(tokenizer, lambda batch: tokenizer.loss(digits.images[batch])["loss"], steps)
    return tokenizer


def fit_generator(digits: Digits, model: Generator, codes: Tensor, steps: int, batch: int) -> None:
    fit(
        model, lambda rows: model.loss(codes[rows], digits.labels[rows])["loss"], steps, batch=batch
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tiny_instella_1d", {}),
        ("tiny_titok", {"quantizer": "bsq", "options": {"bits": 8}}),
        ("tiny_titok", {"quantizer": "fsq", "options": {"levels": (8, 6, 5)}}),
    ],
)
def test_tokenizers_learn(digits: Digits, name: str, options: dict) -> None:
    tokenizer = fit_tokenizer(digits, name, **options)
    report = reconstruction_report(tokenizer, digits.images[digits.valid])
    assert report["psnr"] > 14.5  # the mean image gives 11.3
    assert report.get("bit_entropy", 1.0) > 0.9
    assert report["usage"] > 0.85


def test_codes_are_generated(digits: Digits) -> None:
    tokenizer = fit_tokenizer(digits, "tiny_elm_bae", 400)
    with torch.no_grad():
        codes = tokenizer.encode(digits.images).ids
    torch.manual_seed(0)
    model = create_generator("tiny_elm_ar", space=tokenizer.space)
    fit_generator(digits, model, codes, steps=800, batch=128)
    labels = torch.arange(300) % 10
    samples = tokenizer.decode(model.sample(labels, seed=0)).detach()
    assert digits.accuracy(samples, labels) > 0.75
    assert digits.distance(samples) < 12


def test_pixels_are_generated(digits: Digits) -> None:
    torch.manual_seed(0)
    model = create_generator("tiny_xar_cell")
    pixels = digits.images[:, :1].flatten(2).transpose(1, 2)
    fit_generator(digits, model, pixels, steps=500, batch=64)
    labels = torch.arange(300) % 10
    samples = model.sample(labels, seed=0, steps=20).transpose(1, 2).unflatten(2, (8, 8))
    assert digits.accuracy(samples, labels) > 0.6
