"""The steps of an experiment: train a tokenizer, train a generator on it, sample, measure.

Each step reads what the one before left in the output folder.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from vtc.discrete import (
    Generator,
    Guidance,
    ImageTokenizer,
    create_generator,
    create_objective,
    create_tokenizer,
    save,
)
from vtc.discrete.adversarial import Adversarial, PatchDiscriminator
from vtc.discrete.metrics import code_statistics, image_quality, reconstruct
from vtc.discrete.presets import GENERATORS
from vtc.discrete.samplers import create_sampler
from vtc.errors import VTCError
from vtc.eval.generation import folder as folders
from vtc.eval.generation import pictures
from vtc.eval.generation.config import Experiment, TrainSettings
from vtc.eval.generation.data import ImageData, TensorImages, load_data, take
from vtc.eval.generation.features import feature_net
from vtc.eval.generation.loop import fit, make_accelerator
from vtc.eval.generation.targets import Codes, Pixels, Target, normalised
from vtc.eval.generation.tasks import GeneratorTask, Lpips, TokenizerTask, condition

Progress = Callable[[int, dict[str, float]], Any]
SHOWN = 32  # images of a grid
MEASURED = 5000  # held-out images at most


def silent(step: int, row: dict[str, float]) -> None:
    """No progress bar."""


def check(experiment: Experiment) -> None:
    """Raise `VTCError` for what would fail only after the training: nothing is trained or written."""
    data, tokenizer = load_data(experiment.data), None
    _held_out(data)
    if experiment.generator.target != "pixels":
        tokenizer = build_tokenizer(experiment, data)
    model = build_generator(experiment, data, tokenizer)
    generator_task(experiment, data, model)
    make_target(experiment, data, model, tokenizer)


def build_tokenizer(experiment: Experiment, data: ImageData) -> ImageTokenizer:
    """The untrained tokenizer of an experiment.

    Raises:
        VTCError: an unknown preset or option, or one that does not fit the images.
    """
    settings = experiment.tokenizer
    if "size" in settings.options:
        raise VTCError("tokenizer.options.size: the size of the data is taken, set data.size")
    torch.manual_seed(experiment.seed)
    return create_tokenizer(settings.name, size=data.size, **settings.options)


def train_tokenizer(
    experiment: Experiment, folder: Path, resume: bool = False, progress: Progress = silent
) -> ImageTokenizer:
    """Train the tokenizer and write `tokenizer/model.safetensors`, its history and a curve."""
    settings, data = experiment.tokenizer, load_data(experiment.data)
    tokenizer, rival = build_tokenizer(experiment, data), settings.adversarial
    perceptual = Lpips(settings.perceptual) if settings.perceptual else None
    adversarial = None
    if rival.weight:
        discriminator = PatchDiscriminator(tokenizer.encoder.channels, rival.width, rival.layers)
        adversarial = Adversarial(
            rival.weight, rival.start, rival.adaptive, rival.lecam, discriminator
        )
    task = TokenizerTask(tokenizer, settings.loss, settings.prefix, perceptual, adversarial)
    folders.claim(experiment, folder, "tokenizer")
    best = _train(
        experiment, task, data.train, settings.train, folder / "tokenizer", resume, progress
    )
    return best.tokenizer


def train_generator(
    experiment: Experiment, folder: Path, resume: bool = False, progress: Progress = silent
) -> Generator:
    """Train the generator on the folder's tokenizer, or on pixels; files as for the tokenizer."""
    data, tokenizer = load_data(experiment.data), None
    if experiment.generator.target != "pixels":
        tokenizer = folders.load_part(experiment, folder, "tokenizer")
    model = build_generator(experiment, data, tokenizer)
    task, train = generator_task(experiment, data, model), experiment.generator.train
    images = encode_all(make_target(experiment, data, model, tokenizer), data, tokenizer)
    folders.claim(experiment, folder, "generator")
    return _train(experiment, task, images, train, folder / "generator", resume, progress).generator


def build_generator(
    experiment: Experiment, data: ImageData, tokenizer: ImageTokenizer | None = None
) -> Generator:
    """The untrained generator for the codes or latents of a tokenizer, or for pixels.

    Raises:
        VTCError: the preset makes other codes than the tokenizer, or codes where latents are wanted.
    """
    settings, latents = experiment.generator, experiment.generator.target == "latents"
    options = dict(settings.options)
    if settings.name in GENERATORS:
        takes = inspect.signature(GENERATORS[settings.name]).parameters
        given: dict[str, Any] = {"classes": len(data.classes)}
        if settings.condition == "caption":
            if not data.words or "words" not in takes:
                raise VTCError(
                    f"generator.condition: captions need images with words and a preset that takes "
                    f"them, got {data.name!r} and {settings.name!r}"
                )
            given["words"] = len(data.words)
        if tokenizer is not None:
            space = tokenizer.space
            given["space"] = space
            if latents and (space.grid is None or space.grid[0] != space.grid[1]):
                raise VTCError(
                    f"generator.target: latents need a square grid of tokens, "
                    f"{experiment.tokenizer.name!r} has {space.grid or 'a sequence'}"
                )
            if latents and space.grid is not None:
                given |= {"grid": space.grid[0], "channels": tokenizer.quantizer.dim}
        options = {**{name: v for name, v in given.items() if name in takes}, **options}
    torch.manual_seed(experiment.seed)
    model = create_generator(settings.name, **options)
    if settings.target != "codes" and not model.config.channels:
        raise VTCError(f"generator.target: {settings.name!r} makes codes, not {settings.target}")
    if settings.target == "codes" and tokenizer is not None:
        if model.config.channels or model.space != tokenizer.space:
            raise VTCError(
                f"generator.name: {settings.name!r} makes {model.space}, the tokenizer "
                f"{tokenizer.space}"
            )
    return model


def generator_task(experiment: Experiment, data: ImageData, model: Generator) -> GeneratorTask:
    """What a step of the generator's training computes.

    Raises:
        VTCError: the objective is unknown, or the generator cannot be sampled as the experiment says.
    """
    drawing, objective = experiment.sample, experiment.generator.objective
    Guidance(drawing.guidance, drawing.schedule)
    create_sampler(drawing.sampler or model.config.sampler, **drawing.options).check(model)
    if drawing.captions and model.text is None:
        raise VTCError("sample.captions: got some, but generator.condition is label")
    for caption in drawing.captions:
        data.read(caption)
    return GeneratorTask(model, None if objective is None else create_objective(objective))


def make_target(
    experiment: Experiment,
    data: ImageData,
    model: Generator,
    tokenizer: ImageTokenizer | None,
) -> Target:
    """What the generator makes; latents are scaled by the first training images."""
    if tokenizer is None:
        return Pixels(model.space, model.config.channels, data.size)
    if experiment.generator.target == "codes":
        return Codes(tokenizer)
    count = min(512, len(data.train))  # type: ignore[arg-type]
    images = take(data.train, range(count))["image"]
    return normalised(tokenizer, images.to(next(tokenizer.parameters()).device))


@torch.no_grad()
def encode_all(
    target: Target, data: ImageData, tokenizer: ImageTokenizer | None, batch: int = 256
) -> TensorImages:
    """Targets and labels of all training images; the images themselves are not kept."""
    device = make_accelerator().device
    if tokenizer is not None:
        tokenizer.to(device)
    parts = []
    for rows in torch.arange(len(data.train)).split(batch):  # type: ignore[arg-type]
        part = take(data.train, rows.tolist())
        parts.append({**part, "image": target.encode(part["image"].to(device)).cpu()})
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    codes, labels = whole.pop("image"), whole.pop("label")
    return TensorImages(codes, labels, codes=codes, **whole)


@torch.no_grad()
def sample(experiment: Experiment, folder: Path) -> tuple[Tensor, Tensor]:
    """Images `[n, 3, H, W]` of the folder's generator and their labels; writes them and a grid."""
    one_process("sample")
    settings, data = experiment.sample, load_data(experiment.data)
    device = make_accelerator().device
    model = folders.load_part(experiment, folder, "generator").to(device)
    tokenizer = None
    if experiment.generator.target != "pixels":
        tokenizer = folders.load_part(experiment, folder, "tokenizer").to(device)
    target = make_target(experiment, data, model, tokenizer)
    told, guidance = wanted(experiment, data, model), None
    if settings.guidance != 1:
        guidance = Guidance(settings.guidance, settings.schedule)
    parts = []
    for index, rows in enumerate(torch.arange(settings.count).split(settings.batch)):
        batch = {name: value[rows].to(device) for name, value in told.items()}
        made = model.sample(
            condition(model, batch),
            settings.sampler,
            batch=len(rows),
            guidance=guidance,
            seed=experiment.seed * 100_003 + index,
            **settings.options,
        )
        parts.append(target.decode(made).cpu())
    images = torch.cat(parts).clamp(-1, 1).contiguous()
    labels = told["label"]
    how = {"settings": json.dumps(asdict(settings))}
    save_file({"images": images, "labels": labels}, str(folder / "samples.safetensors"), how)
    pictures.save_grid(images[:100], max(10, min(len(data.classes), 20)), folder / "samples.png")
    return images, labels


def wanted(experiment: Experiment, data: ImageData, model: Generator) -> dict[str, Tensor]:
    """Labels, and captions for a model that reads them, of all samples.

    Classes come in turn. Captions are those of held-out images, with their labels, or the experiment's
    own, with labels of -1.
    """
    count = experiment.sample.count
    if model.text is None:
        return {"label": torch.arange(count) % len(data.classes)}
    own = [data.read(caption) for caption in experiment.sample.captions]
    if own:
        texts = torch.nn.utils.rnn.pad_sequence(own, batch_first=True, padding_value=-1)
        return {"label": torch.full((count,), -1), "caption": texts[torch.arange(count) % len(own)]}
    rows = torch.arange(count) % len(data.valid)  # type: ignore[arg-type]
    held = take(data.valid, rows.tolist())
    return {"label": held["label"], "caption": held["caption"]}


def measure(experiment: Experiment, folder: Path) -> dict[str, Any]:
    """Measure what the folder has: reconstructions, samples or both; writes `metrics.json`."""
    one_process("measure")
    data = load_data(experiment.data)
    count = _held_out(data)
    held = take(data.valid, range(count))["image"]
    trained = (folder / "tokenizer" / folders.FILE).is_file()
    samples = folder / "samples.safetensors"
    if not trained and not samples.is_file():
        raise VTCError(f"output: {folder} has neither a trained tokenizer nor samples to measure")
    net = feature_net(data, experiment.features)
    report: dict[str, Any] = {
        "features": net.name,
        "classifier_accuracy": net.accuracy,
        "distance_of_held_out_images": net.distance(held),
    }
    if trained:
        tokenizer = folders.load_part(experiment, folder, "tokenizer")
        output, ids = reconstruct(tokenizer, held)
        report["reconstruction"] = {
            **image_quality(output, held),
            **code_statistics(ids, tokenizer.space),
            "distance": net.distance(output),
        }
        pairs = torch.cat([held[:SHOWN], output[:SHOWN]])
        pictures.save_grid(pairs, min(SHOWN, count), folder / "reconstructions.png", 32)
    if samples.is_file():
        with safe_open(str(samples), "pt") as file:
            images, labels = file.get_tensor("images"), file.get_tensor("labels")
            how = json.loads(file.metadata()["settings"])
        report["samples"] = {
            **how,
            "count": len(images),
            "distance": net.distance(images),
            "class_accuracy": net.agreement(images, labels) if bool((labels >= 0).all()) else None,
        }
    (folder / "metrics.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def _held_out(data: ImageData) -> int:
    """How many held-out images are measured with.

    Raises:
        VTCError: fewer than 2.
    """
    count = min(MEASURED, len(data.valid))  # type: ignore[arg-type]
    if count < 2:
        raise VTCError("data.held_out: fewer than 2 images are held out, nothing can be measured")
    return count


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
        model: Any = getattr(best, "tokenizer", None) or best.generator
        save(model, folder / folders.FILE)
        lines = "".join(json.dumps(row) + "\n" for row in history)
        (folder / "history.jsonl").write_text(lines, encoding="utf-8")
        pictures.save_history(history, folder / "history.png", folder.name)
    accelerator.wait_for_everyone()
    return best
