"""The model that is measured: an architecture with random weights or a checkpoint, and its prompt."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

import vtc
from vtc.errors import VTCError
from vtc.eval.efficiency.shapes import Depth, Shape, build, narrowed, shape

#: language and vision layers of a shape on a CPU, unless asked for otherwise
CPU_DEPTH = (1, 4)
IMAGE_SIZE = (672, 672)
QUESTION = 48  # tokens of text
#: a shape's fixed question; its text tower reads random ids in its place
_ASKED = "what is in the picture?"


@dataclass(frozen=True)
class Subject:
    """A model with a prompt.

    Attributes:
        name: of the shape or checkpoint.
        model: in eval mode, on `device`.
        device: a torch device.
        inputs: the arguments of `generate` for a running number; every number asks something else,
            so that a text encoder that remembers what it has read saves nothing.
        options: method -> options with which it is made for this model.
        processor: reads prompts for text-guided methods, None for a shape.
        depth: layers of the model.
        true_depth: layers as published.
        weights: bytes of the weights.
        true_weights: bytes at the published depth.
        facts: what identifies it, for the manifest.
    """

    name: str
    model: Any
    device: Any
    inputs: Callable[[int], dict[str, Any]]
    options: Callable[[str], dict[str, Any]]
    processor: Any
    depth: Depth
    true_depth: Depth
    weights: int
    true_weights: int
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def missing(self) -> Depth:
        """Published layers that the model lacks."""
        return Depth(
            self.true_depth.language - self.depth.language,
            self.true_depth.vision - self.depth.vision,
        )


def picture(size: tuple[int, int]) -> Image.Image:
    """Smooth noise of `size` (width, height)."""
    import numpy as np

    noise = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def from_shape(
    name: str,
    layers: int | None = None,
    vision_layers: int | None = None,
    device: str | None = None,
    dtype: str = "auto",
    image: Image.Image | None = None,
    question: int = QUESTION,
    width: float = 1.0,
) -> Subject:
    """An architecture with random weights.

    Args:
        name: one of `shapes.SHAPES`.
        layers, vision_layers: None for the published depth on a GPU and `CPU_DEPTH` on a CPU.
        dtype: "auto" is bfloat16 on a GPU and float32 on a CPU.
        image: of the prompt.
        question: tokens of text around the image.
        width: share of the language model's width.

    Raises:
        VTCError: unknown shape, depth or width out of range, or too little memory.
    """
    import torch

    from vtc.eval.common.loading import find_device

    wanted = narrowed(shape(name), width)
    place = find_device(device)
    if place.type == "cpu":
        layers = CPU_DEPTH[0] if layers is None else layers
        vision_layers = max(CPU_DEPTH[1], wanted.least) if vision_layers is None else vision_layers
    half = torch.float32 if place.type == "cpu" else torch.bfloat16
    kind = half if dtype == "auto" else getattr(torch, dtype)
    depth = wanted.reduced(layers, vision_layers)
    made = assemble(name, wanted, depth, place, kind, image or picture(IMAGE_SIZE), question)
    return replace(made, facts={**made.facts, "width": width})


def assemble(
    name: str,
    wanted: Shape,
    depth: Depth,
    device: Any,
    dtype: Any,
    image: Image.Image,
    question: int,
) -> Subject:
    """The subject of a shape at a depth."""
    import torch

    from vtc.eval.efficiency.memory import weight_bytes

    whole = weight_bytes([build(wanted.config(wanted.depth), "meta", dtype)])
    needed = weight_bytes([build(wanted.config(depth), "meta", dtype)])
    free = _free_bytes(device)
    if free is not None and needed > free:
        raise VTCError(
            f"layers: {name} with {depth.language} + {depth.vision} layers in {dtype} needs "
            f"{needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free on {device}; give fewer with "
            "--layers and --vision-layers"
        )
    torch.manual_seed(0)
    config = wanted.config(depth)
    model = build(config, device, dtype)
    pixels = {
        key: value.to(device, dtype) if value.is_floating_point() else value.to(device)
        for key, value in wanted.pictures()(images=[image], return_tensors="pt").items()
        if key != "num_patches"
    }
    placeholders = wanted.placeholders(config, pixels)
    words = config.get_text_config().vocab_size // 2
    typed = "mm_token_type_ids" in inspect.signature(type(model).forward).parameters

    def inputs(serial: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(serial)
        text = torch.randint(10, words, (question,), generator=generator).tolist()
        front = min(5, question // 2)
        row = torch.tensor([[*text[:front], *placeholders, *text[front:]]], device=device)
        image_token = (row == config.image_token_id).long()
        types = {"mm_token_type_ids": image_token} if typed else {}
        mask = torch.ones_like(row)
        return {"input_ids": row, "attention_mask": mask, **types, **pixels}

    return Subject(
        name=name,
        model=model,
        device=device,
        inputs=inputs,
        options=_shape_options(model, wanted, device, dtype),
        processor=None,
        depth=depth,
        true_depth=wanted.depth,
        weights=needed,
        true_weights=whole,
        facts={
            "shape": name,
            "weights": "random",
            "image_size": list(image.size),
            "question_tokens": question,
        },
    )


def _shape_options(
    model: Any, wanted: Shape, device: Any, dtype: Any
) -> Callable[[str], dict[str, Any]]:
    """Random stand-ins for the trained parts that methods bring along."""
    from vtc.eval.efficiency.text_tower import RandomTextTower
    from vtc.methods.tokenflex import TokenFlexProjector

    made: dict[str, Any] = {}

    def options(method: str) -> dict[str, Any]:
        if not wanted.clip or method not in ("recoverable", "tokenflex"):
            return {}
        width = model.config.vision_config.hidden_size
        if method not in made:
            if method == "recoverable":
                made[method] = RandomTextTower(width, device, dtype)
            else:
                text = model.config.get_text_config().hidden_size
                made[method] = TokenFlexProjector(width, text).to(device, dtype)
        if method == "recoverable":
            return {"text_encoder": made[method], "question": _ASKED}
        return {"projector": made[method]}

    return options


def from_checkpoint(
    name: str,
    device: str | None = None,
    dtype: str = "auto",
    image: Image.Image | None = None,
    question: int = QUESTION,
) -> Subject:
    """A checkpoint: a hub id, a folder, or "reference".

    Args:
        image: of the prompt.
        question: words of the question.

    Raises:
        VTCError: it cannot be loaded.
    """
    from vtc.eval.common.loading import load
    from vtc.eval.efficiency.memory import weight_bytes
    from vtc.eval.efficiency.stages import parts

    loaded = load(name, device, dtype)
    _, _, towers, decoder = parts(loaded.model)
    small = (128, 128) if name == "reference" else IMAGE_SIZE
    shown = image or picture(small)

    def inputs(serial: int) -> dict[str, Any]:
        words = ["what", "is", "in", "the", "image", "?"]
        text = " ".join(words[i % len(words)] for i in range(max(question - 1, 0)))
        return dict(loaded.inputs([shown], f"{text} {serial % 1000:03d}"))

    brought = vtc.model_defaults(loaded.model)
    weights, depth = weight_bytes([loaded.model]), Depth(len(decoder), len(towers))
    return Subject(
        name=name if not Path(name).is_dir() else Path(name).name,
        model=loaded.model,
        device=loaded.device,
        inputs=inputs,
        options=lambda method: brought.get(method, {}),
        processor=loaded.processor,
        depth=depth,
        true_depth=depth,
        weights=weights,
        true_weights=weights,
        facts={"model": name, "image_size": list(shown.size), "question_words": question},
    )


def _free_bytes(device: Any) -> int | None:
    """Memory that is free on a device, None when the system does not say."""
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None
