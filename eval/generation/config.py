"""What an experiment is: a YAML file over defaults, with overrides from the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from vtc.errors import VTCError, nearest

CONFIGS = Path(__file__).with_name("configs")


@dataclass
class DataSettings:
    """Which images.

    Attributes:
        name: "digits", "shapes", "glyphs", "folder:PATH" or "hub:NAME", see `data.load_data`.
        size: pixels of the square images.
        count: images to render (0 for 2000), or how many to draw of the others (0 for all).
        held_out: share of the images that is kept for measuring.
        corrupt: what to do with a file of a folder that is no image: "error" or "skip".
        split: of a hub data set.
        seed: of rendering and of the split.
    """

    name: str = "digits"
    size: int = 8
    count: int = 0
    held_out: float = 0.165
    corrupt: str = "error"
    split: str = "train"
    seed: int = 0

    def __post_init__(self) -> None:
        _within("data.size", self.size, 1)
        _within("data.count", self.count, 0)
        _within("data.held_out", self.held_out, 0.0, 0.9)
        _one_of("data.corrupt", self.corrupt, ("error", "skip"))


@dataclass
class TrainSettings:
    """How to train.

    Attributes:
        steps: optimiser steps.
        batch: images a step, over all processes.
        lr: largest learning rate of AdamW.
        warmup: share of the steps that the rate rises.
        schedule: "cosine" falls to 0 after that, "constant" stays.
        weight_decay: of AdamW.
        clip: largest gradient norm.
        ema: decay of the averaged weights, which are what is saved and measured; 0 for none. It is
            (1 + n) / (10 + n) in step n where that is less.
        log_every: steps from one line of the history to the next.
        checkpoint_every: steps from one checkpoint to the next, 0 for none but the last.
        workers: processes that read images.
    """

    steps: int = 700
    batch: int = 64
    lr: float = 2e-3
    warmup: float = 0.1
    schedule: str = "cosine"
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.99
    log_every: int = 20
    checkpoint_every: int = 200
    workers: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "log_every"):
            _within(f"train.{name}", getattr(self, name), 1)
        for name in ("lr", "weight_decay", "checkpoint_every", "workers"):
            _within(f"train.{name}", getattr(self, name), 0)
        _within("train.warmup", self.warmup, 0.0, 1.0)
        _within("train.ema", self.ema, 0.0, 0.99999)
        _one_of("train.schedule", self.schedule, ("cosine", "constant"))


@dataclass
class AdversarialSettings:
    """A discriminator beside the tokenizer, see `vtc.discrete.adversarial.Adversarial`.

    Attributes:
        weight: of the tokenizer's share, 0 for no discriminator.
        start: steps before it begins.
        adaptive: balance it with the reconstruction.
        lecam: weight of the LeCAM penalty.
        width: channels of the discriminator's first layer.
        layers: its stride-2 layers; images need 3 * 2 ** layers pixels.
    """

    weight: float = 0.0
    start: int = 0
    adaptive: bool = True
    lecam: float = 0.0
    width: int = 64
    layers: int = 3

    def __post_init__(self) -> None:
        for name in ("weight", "start", "lecam"):
            _within(f"tokenizer.adversarial.{name}", getattr(self, name), 0)
        for name in ("width", "layers"):
            _within(f"tokenizer.adversarial.{name}", getattr(self, name), 1)


@dataclass
class TokenizerSettings:
    """Which tokenizer, and its loss.

    Attributes:
        name: a preset of `vtc.discrete.list_tokenizers`.
        options: arguments of the preset; `size` is the data's.
        loss: "l1", "mse" or "smooth_l1".
        perceptual: weight of LPIPS (the `lpips` package with its VGG, which it downloads).
        adversarial: see `AdversarialSettings`.
        prefix: decode a random prefix of the tokens in half of the steps (1-D codes).
        train: how to train it.
    """

    name: str = "tiny_instella_1d"
    options: dict[str, Any] = field(default_factory=dict)
    loss: str = "mse"
    perceptual: float = 0.0
    adversarial: AdversarialSettings = field(default_factory=AdversarialSettings)
    prefix: bool = False
    train: TrainSettings = field(default_factory=TrainSettings)

    def __post_init__(self) -> None:
        _one_of("tokenizer.loss", self.loss, ("l1", "mse", "smooth_l1"))
        _within("tokenizer.perceptual", self.perceptual, 0)


@dataclass
class GeneratorSettings:
    """Which generator.

    Attributes:
        name: a preset of `vtc.discrete.list_generators`.
        options: arguments of the preset; `space` and `classes` come from tokenizer and data.
        condition: "label", or "caption" for images that have one and presets that take `words`.
        objective: in place of the preset's: a name, or `{name: NAME, OPTION: VALUE}`, see
            `vtc.discrete.create_objective`.
        target: "codes" of the frozen tokenizer; for presets of continuous latents "latents", what its
            decoder reads, or "pixels".
        train: how to train it.
    """

    name: str = "tiny_elm_ar"
    options: dict[str, Any] = field(default_factory=dict)
    condition: str = "label"
    objective: Any = None
    target: str = "codes"
    train: TrainSettings = field(default_factory=lambda: TrainSettings(steps=1000, batch=128))

    def __post_init__(self) -> None:
        _one_of("generator.condition", self.condition, ("label", "caption"))
        _one_of("generator.target", self.target, ("codes", "latents", "pixels"))


@dataclass
class SampleSettings:
    """How to sample.

    Attributes:
        count: samples to measure, classes in turn.
        batch: samples at a time.
        sampler: of `Generator.sample`; empty for the preset's own.
        guidance: scale, 1 for none.
        schedule: of the guidance, see `vtc.discrete.schedules.GUIDANCE`.
        captions: texts to draw, in turn; those of held-out images by default.
        options: further arguments of the sampler.
    """

    count: int = 500
    batch: int = 250
    sampler: str = ""
    guidance: float = 1.0
    schedule: str = "linear"
    captions: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _within("sample.count", self.count, 2)
        _within("sample.batch", self.batch, 1)


@dataclass
class FeatureSettings:
    """The network whose features the Frechet distance is taken in.

    Attributes:
        net: "classifier", a small network trained on the data's labels, or "timm:NAME".
        pretrained: take timm's weights.
        steps: of the classifier's training.
    """

    net: str = "classifier"
    pretrained: bool = True
    steps: int = 600


@dataclass
class Experiment:
    """One experiment: everything that its results depend on.

    Attributes:
        data: see `DataSettings`.
        tokenizer: see `TokenizerSettings`.
        generator: see `GeneratorSettings`.
        sample: see `SampleSettings`.
        features: see `FeatureSettings`.
        precision: "no", "bf16" or "fp16", as accelerate means it.
        seed: of weights, batches and noise.
    """

    data: DataSettings = field(default_factory=DataSettings)
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    generator: GeneratorSettings = field(default_factory=GeneratorSettings)
    sample: SampleSettings = field(default_factory=SampleSettings)
    features: FeatureSettings = field(default_factory=FeatureSettings)
    precision: str = "no"
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of("precision", self.precision, ("no", "bf16", "fp16"))

    def to_yaml(self) -> str:
        """The experiment as a YAML file holds it."""
        return OmegaConf.to_yaml(OmegaConf.structured(self))


def list_configs() -> list[str]:
    """Names of the configs that come with the package."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def load_experiment(name: str | Path, overrides: list[str] | None = None) -> Experiment:
    """The experiment of a YAML file, or of a config that comes with the package.

    Args:
        name: a path, or a name of `list_configs`.
        overrides: "section.key=value", for example "tokenizer.train.steps=100".

    Raises:
        VTCError: no such file, an unknown key, or a value of a wrong kind or out of range.
    """
    path = Path(name)
    if not path.is_file():
        path = CONFIGS / f"{name}.yaml"
    if not path.is_file():
        raise VTCError(
            f"config: {name} is no file and no name of {', '.join(list_configs())}"
            f"{nearest(str(name), list_configs())}"
        )
    for override in overrides or []:
        if "=" not in override:
            raise VTCError(f"set: got {override!r}, write section.key=value")
    try:
        given = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_dotlist(overrides or []))
        merged = OmegaConf.merge(OmegaConf.structured(Experiment), given)
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except ConfigKeyError as error:
        raise VTCError(f"config: {_key(error)} is unknown{_hint(error)}") from error
    except OmegaConfBaseException as error:
        raise VTCError(f"config: {_key(error)}: {str(error).splitlines()[0]}") from error
    except YAMLError as error:
        raise VTCError(f"config: {path} is no YAML: {error}") from error


def _key(error: OmegaConfBaseException) -> str:
    return str(getattr(error, "full_key", None) or "the file")


def _hint(error: ConfigKeyError) -> str:
    known = list(getattr(error.parent_node, "_content", None) or {})
    given = str(error.key)
    return f", known are {', '.join(map(str, known))}{nearest(given, known)}" if known else ""


def _within(name: str, value: float, low: float, high: float | None = None) -> None:
    if value < low or (high is not None and value > high):
        allowed = f">= {low}" if high is None else f"{low} to {high}"
        raise VTCError(f"{name}: got {value}, allowed are {allowed}")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise VTCError(
            f"{name}: got {value!r}, available are {', '.join(allowed)}{nearest(value, allowed)}"
        )
