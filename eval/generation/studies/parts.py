"""Pieces that several studies share."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from vtc.discrete import Generator, ImageTokenizer, create_tokenizer
from vtc.eval.generation.config import DataSettings, FeatureSettings, TrainSettings
from vtc.eval.generation.data import ImageData, TensorImages, load_data, take
from vtc.eval.generation.features import FeatureNet, feature_net
from vtc.eval.generation.loop import fit
from vtc.eval.generation.tasks import GeneratorTask, TokenizerTask


@functools.lru_cache(maxsize=4)
def images(name: str, size: int, count: int = 0) -> ImageData:
    """The images of a study, the same for every seed."""
    return load_data(DataSettings(name=name, size=size, count=count))


@functools.lru_cache(maxsize=4)
def features(name: str, size: int, count: int = 0) -> FeatureNet:
    """The classifier of these images, the same for every seed."""
    return feature_net(images(name, size, count), FeatureSettings())


def train_tokenizer(
    data: ImageData,
    seed: int,
    train: dict[str, Any],
    name: str,
    prefix: bool = False,
    **options: Any,
) -> ImageTokenizer:
    """A tokenizer preset trained on the data's images, with averaged weights."""
    torch.manual_seed(seed)
    task = TokenizerTask(create_tokenizer(name, size=data.size, **options), prefix=prefix)
    best, _ = fit(task, data.train, TrainSettings(**train), seed)
    return best.tokenizer


def train_generator(
    model: Generator, codes: Tensor, labels: Tensor, seed: int, train: dict[str, Any]
) -> Generator:
    """A generator trained on codes or latents, with averaged weights."""
    task = GeneratorTask(model)
    best, _ = fit(task, TensorImages(codes, labels, codes=codes), TrainSettings(**train), seed)
    return best.generator


@torch.no_grad()
def encode(tokenizer: ImageTokenizer, pictures: Tensor) -> Tensor:
    """Ids `[n, N, K]` of images."""
    return torch.cat([tokenizer.encode(part).ids for part in pictures.split(256)])


def held_out(data: ImageData) -> dict[str, Tensor]:
    """All held-out images as one batch."""
    return take(data.valid)


def labels_of(count: int, classes: int) -> Tensor:
    """Classes in turn, int64 `[count]`."""
    return torch.arange(count) % classes


def training(data: ImageData) -> dict[str, Tensor]:
    """All training images as one batch."""
    return take(data.train)
