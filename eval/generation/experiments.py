"""The steps of an experiment: train a tokenizer, train a generator on it, sample, measure.

Each step reads what the one before left in the output folder.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import Tensor

from vtc.discrete import (
    Generator,
    Guidance,
    ImageTokenizer,
    create_generator,
    create_tokenizer,
    load,
    save,
)
from vtc.discrete.losses import Adversarial, PatchDiscriminator
from vtc.discrete.metrics import code_statistics, image_quality, reconstruct
from vtc.discrete.presets import GENERATORS
from vtc.errors import VTCError
from vtc.eval.generation import pictures
from vtc.eval.generation.config import Experiment, TrainSettings
from vtc.eval.generation.data import ImageData, TensorImages, load_data, take
from vtc.eval.generation.features import feature_net
from vtc.eval.generation.loop import fit, make_accelerator
from vtc.eval.generation.tasks import (
    GeneratorTask,
    Lpips,
    TokenizerTask,
    from_patches,
    to_patches,
)

Progress = Callable[[int, dict[str, float]], Any]
SHOWN = 32  # images of a grid


def silent(step: int, row: dict[str, float]) -> None:
    """No progress bar."""


def open_folder(experiment: Experiment, folder: Path) -> None:
    """Make the output folder and note the experiment in it.

    Raises:
        VTCError: the folder belongs to an experiment with other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, text = folder / "config.yaml", experiment.to_yaml()
    if path.is_file():
        old = path.read_text(encoding="utf-8")
        if old != text:
            both = zip(old.splitlines(), text.splitlines(), strict=False)
            changed = [f"{a.strip()} -> {b.strip()}" for a, b in both if a != b]
            raise VTCError(
                f"output: {folder} holds an experiment with other settings "
                f"({'; '.join(changed[:3]) or 'other keys'}); take another folder"
            )
    elif PartialState().is_main_process:
        path.write_text(text, encoding="utf-8")
    PartialState().wait_for_everyone()


def train_tokenizer(
    experiment: Experiment, folder: Path, resume: bool = False, progress: Progress = silent
) -> ImageTokenizer:
    """Train the tokenizer and write `tokenizer/model.safetensors`, its history and a curve."""
    open_folder(experiment, folder)
    settings, data = experiment.tokenizer, load_data(experiment.data)
    if "size" in settings.options:
        raise VTCError("tokenizer.options.size: the size of the data is taken, set data.size")
    torch.manual_seed(experiment.seed)
    tokenizer = create_tokenizer(settings.name, size=data.size, **settings.options)
    perceptual = Lpips(settings.perceptual) if settings.perceptual else None
    rival = settings.adversarial
    adversarial = None
    if rival.weight:
        discriminator = PatchDiscriminator(tokenizer.encoder.channels, rival.width, rival.layers)
        adversarial = Adversarial(
            rival.weight, rival.start, rival.adaptive, rival.lecam, discriminator
        )
    task = TokenizerTask(tokenizer, settings.loss, settings.prefix, perceptual, adversarial)
    best = _train(
        experiment, task, data.train, settings.train, folder / "tokenizer", resume, progress
    )
    return best.tokenizer


def train_generator(
    experiment: Experiment, folder: Path, resume: bool = False, progress: Progress = silent
) -> Generator:
    """Train the generator on the folder's tokenizer, or on pixels; files as for the tokenizer."""
    open_folder(experiment, folder)
    data = load_data(experiment.data)
    torch.manual_seed(experiment.seed)
    if experiment.generator.target == "codes":
        tokenizer = load_tokenizer(folder)
        model = build_generator(experiment, data, tokenizer)
        codes = encode_all(tokenizer, data)
    else:
        model = build_generator(experiment, data)
        images = take(data.train)
        codes = TensorImages(
            images["image"],
            images["label"],
            codes=to_patches(images["image"], model.space, model.config.channels),
        )
    train = experiment.generator.train
    task, where = GeneratorTask(model), folder / "generator"
    return _train(experiment, task, codes, train, where, resume, progress).generator


def build_generator(
    experiment: Experiment, data: ImageData, tokenizer: ImageTokenizer | None = None
) -> Generator:
    """The generator preset for the codes of a tokenizer and the classes of the data.

    Raises:
        VTCError: the preset makes other codes than the tokenizer, or codes where pixels are wanted.
    """
    settings = experiment.generator
    options = dict(settings.options)
    if settings.name in GENERATORS:
        takes = inspect.signature(GENERATORS[settings.name]).parameters
        if tokenizer is not None and "space" in takes:
            options.setdefault("space", tokenizer.space)
        if "classes" in takes:
            options.setdefault("classes", len(data.classes))
    model = create_generator(settings.name, **options)
    if tokenizer is None and not model.config.channels:
        raise VTCError(f"generator.target: {settings.name!r} makes codes, not pixels")
    if tokenizer is not None and (model.config.channels or model.space != tokenizer.space):
        raise VTCError(
            f"generator.name: {settings.name!r} makes {model.space}, the tokenizer {tokenizer.space}"
        )
    return model


@torch.no_grad()
def encode_all(tokenizer: ImageTokenizer, data: ImageData, batch: int = 256) -> TensorImages:
    """Codes and labels of all training images; the images themselves are not kept."""
    device = make_accelerator().device
    tokenizer = tokenizer.to(device)
    ids, labels = [], []
    for rows in torch.arange(len(data.train)).split(batch):  # type: ignore[arg-type]
        part = take(data.train, rows.tolist())
        ids.append(tokenizer.encode(part["image"].to(device)).ids.cpu())
        labels.append(part["label"])
    codes = torch.cat(ids)
    return TensorImages(codes, torch.cat(labels), codes=codes)


@torch.no_grad()
def sample(experiment: Experiment, folder: Path) -> tuple[Tensor, Tensor]:
    """Images `[n, 3, H, W]` of the folder's generator and their labels; writes them and a grid."""
    one_process("sample")
    open_folder(experiment, folder)
    settings, data = experiment.sample, load_data(experiment.data)
    device = make_accelerator().device
    model = _load(folder / "generator", "train-generator").to(device)
    tokenizer = None
    if experiment.generator.target == "codes":
        tokenizer = load_tokenizer(folder).to(device)
    labels = torch.arange(settings.count) % len(data.classes)
    guidance = None
    if settings.guidance != 1:
        guidance = Guidance(settings.guidance, settings.schedule)
    parts = []
    for index, part in enumerate(labels.split(settings.batch)):
        given = part.to(device) if model.classes is not None else None
        out = model.sample(
            given,
            settings.sampler,
            batch=len(part),
            guidance=guidance,
            seed=experiment.seed * 100_003 + index,
            **settings.options,
        )
        if tokenizer is None:
            parts.append(from_patches(out, model.space, data.size).cpu())
        else:
            parts.append(tokenizer.decode(out).cpu())
    images = torch.cat(parts).clamp(-1, 1).contiguous()
    save_file({"images": images, "labels": labels}, str(folder / "samples.safetensors"))
    pictures.save_grid(images[:100], max(10, min(len(data.classes), 20)), folder / "samples.png")
    return images, labels


def measure(experiment: Experiment, folder: Path) -> dict[str, Any]:
    """Measure what the folder has: reconstructions, samples or both; writes `metrics.json`."""
    one_process("measure")
    open_folder(experiment, folder)
    data = load_data(experiment.data)
    net = feature_net(data, experiment.features)
    held = take(data.valid)
    report: dict[str, Any] = {
        "features": net.name,
        "classifier_accuracy": net.accuracy,
        "distance_of_held_out_images": net.distance(held["image"]),
    }
    if (folder / "tokenizer" / "model.safetensors").is_file():
        tokenizer = load_tokenizer(folder)
        output, ids = reconstruct(tokenizer, held["image"])
        report["reconstruction"] = {
            **image_quality(output, held["image"]),
            **code_statistics(ids, tokenizer.space),
            "distance": net.distance(output),
        }
        pairs = torch.cat([held["image"][:SHOWN], output[:SHOWN]])
        pictures.save_grid(
            pairs, min(SHOWN, len(held["image"])), folder / "reconstructions.png", 32
        )
    if (folder / "samples.safetensors").is_file():
        made = load_file(str(folder / "samples.safetensors"))
        report["samples"] = {
            "count": len(made["images"]),
            "distance": net.distance(made["images"]),
            "class_accuracy": net.agreement(made["images"], made["labels"]),
        }
    if len(report) == 3:
        raise VTCError(f"output: {folder} has neither a trained tokenizer nor samples to measure")
    (folder / "metrics.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of an output folder, in evaluation mode."""
    return _load(folder / "tokenizer", "train-tokenizer")


def one_process(step: str) -> None:
    """Raise `VTCError` where several processes were started."""
    if PartialState().num_processes > 1:
        raise VTCError(f"{step}: runs in one process, start it without `accelerate launch`")


def _train(
    experiment: Experiment,
    task: torch.nn.Module,
    images: Any,
    settings: TrainSettings,
    folder: Path,
    resume: bool,
    progress: Progress,
) -> Any:
    accelerator = make_accelerator(experiment.precision)
    best, history = fit(
        task, images, settings, experiment.seed, folder, resume, progress, accelerator
    )
    if accelerator.is_main_process:
        model = getattr(best, "tokenizer", None) or best.generator
        save(model, folder / "model.safetensors")
        lines = "".join(json.dumps(row) + "\n" for row in history)
        (folder / "history.jsonl").write_text(lines, encoding="utf-8")
        pictures.save_history(history, folder / "history.png", folder.name)
    accelerator.wait_for_everyone()
    return best


def _load(folder: Path, step: str) -> Any:
    path = folder / "model.safetensors"
    if not path.is_file():
        raise VTCError(f"output: {path} is missing; `generation {step}` makes it")
    return load(path)
