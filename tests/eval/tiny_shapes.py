"""The measured architectures with their true layout, tiles and patches, but narrow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from vtc.eval.efficiency.shapes import SHAPES, Depth, Shape
from vtc.eval.efficiency.subject import Subject, assemble, picture

HEAD, KV = 12, 2


def narrow(name: str, depth: Depth | None = None) -> Shape:
    """A shape of `shapes.SHAPES` with small widths and another published depth."""
    shape = SHAPES[name]

    def config(depth: Depth) -> Any:
        made = shape.config(depth)
        text, vision = made.text_config, made.vision_config
        text.hidden_size, text.intermediate_size = 4 * HEAD, 96
        text.num_attention_heads, text.num_key_value_heads = 4, KV
        text.head_dim = HEAD
        vision.hidden_size, vision.intermediate_size = 32, 64
        vision.num_attention_heads = 4
        if name.startswith("qwen"):
            vision.out_hidden_size = text.hidden_size
            text.rope_parameters = {**text.rope_parameters, "mrope_section": [2, 2, 2]}
        return made

    return replace(shape, config=config, depth=depth or shape.depth)


def subject(
    name: str,
    depth: Depth,
    published: Depth | None = None,
    size: tuple[int, int] = (300, 200),
    question: int = 9,
) -> Subject:
    """A narrow model on the CPU, its prompt a picture and 9 tokens of text."""
    shape = narrow(name, published or depth)
    return assemble(name, shape, depth, torch.device("cpu"), torch.float32, picture(size), question)
