"""The network whose features the Frechet distance is taken in; it is named with every figure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtc.discrete import Noise, frechet_distance
from vtc.errors import VTCError
from vtc.eval.generation.config import FeatureSettings, TrainSettings
from vtc.eval.generation.data import ImageData, take
from vtc.eval.generation.loop import fit


class Classifier(nn.Module):
    """Two convolutions and two linear layers, for images of a few pixels.

    Args:
        size: pixels of a side.
        classes: number of labels.
        width: of the features, the layer before the last.
    """

    def __init__(self, size: int, classes: int, width: int = 32) -> None:
        super().__init__()
        side = (size + 1) // 2
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * side * side, width),
            nn.ReLU(),
        )
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """`[B, 3, H, W]` to logits."""
        return self.head(self.body(images))


class ClassifierTask(nn.Module):
    """Name the label of an image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor], noise: Noise) -> dict[str, Tensor]:
        """The cross-entropy; in full precision, whatever the process has."""
        with torch.autocast(batch["image"].device.type, enabled=False):
            return {"loss": F.cross_entropy(self.model(batch["image"]), batch["label"])}


@dataclass
class FeatureNet:
    """Features `[n, D]` of images, and what is known of the net.

    Features are scaled so that those of the training images have variance 1 on average: a distance of
    D is then as far as the training images spread.

    Attributes:
        name: says in a table what the distance was taken in.
        body: images `[n, 3, H, W]` in [-1, 1] to features.
        reference: features of the training images.
        classify: images to logits, None for a net that knows other classes.
        accuracy: of `classify` on held-out images.
    """

    name: str
    body: Callable[[Tensor], Tensor]
    reference: Tensor
    classify: Callable[[Tensor], Tensor] | None = None
    accuracy: float | None = None

    @torch.no_grad()
    def distance(self, images: Tensor) -> float:
        """Frechet distance of `images` to the training images."""
        return frechet_distance(self.body(images.clamp(-1, 1)).cpu(), self.reference)

    @torch.no_grad()
    def agreement(self, images: Tensor, labels: Tensor) -> float | None:
        """Share of the images that the classifier calls by their label."""
        if self.classify is None:
            return None
        called = self.classify(images.clamp(-1, 1)).argmax(dim=1).cpu()
        return float((called == labels.cpu()).float().mean())


def feature_net(data: ImageData, settings: FeatureSettings, limit: int = 5000) -> FeatureNet:
    """Train the classifier, or load a timm net; `limit` images at most make the reference
    and as many its accuracy.

    Raises:
        VTCError: an unknown net, or timm is missing or cannot load it.
    """
    count = min(len(data.train), limit)  # type: ignore[arg-type]
    real = take(data.train, range(count))["image"]
    kind, _, name = settings.net.partition(":")
    if settings.net == "classifier":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # one net for every seed of an experiment
            task = ClassifierTask(Classifier(data.size, len(data.classes)))
        train = TrainSettings(steps=settings.steps, batch=64, lr=3e-3, ema=0.0)
        fit(task, data.train, train)
        model: Any = task.model.cpu().eval()
        width = model.head.in_features
        name = f"{width}-d classifier of {data.name}"
        net = FeatureNet(name, *_scaled(model.body, real), classify=_in_parts(model))
        held = take(data.valid, range(min(len(data.valid), limit)))  # type: ignore[arg-type]
        net.accuracy = net.agreement(held["image"], held["label"])
        return net
    if kind != "timm" or not name:
        raise VTCError(f"features.net: got {settings.net!r}, write classifier or timm:NAME")
    from vtc.discrete import TimmEncoder

    encoder = TimmEncoder(name, pretrained=settings.pretrained, frozen=True).eval()
    weights = "timm's weights" if settings.pretrained else "random weights"
    return FeatureNet(
        f"{name} of timm, {weights}", *_scaled(lambda x: encoder(x).mean(dim=1), real)
    )


def _scaled(
    net: Callable[[Tensor], Tensor], real: Tensor
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The net with features of mean variance 1 over the images `real`, and those features."""
    body = _in_parts(net)
    features = body(real)
    scale = features.var(dim=0).mean().sqrt()
    return lambda images: body(images) / scale, features / scale


def _in_parts(net: Callable[[Tensor], Tensor], size: int = 256) -> Callable[[Tensor], Tensor]:
    @torch.no_grad()
    def run(images: Tensor) -> Tensor:
        return torch.cat([net(part) for part in images.cpu().split(size)])

    return run
