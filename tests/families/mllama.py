"""Mllama: a tiny random model, inputs, and its tower with patches taken away by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers as tf
from torch import Tensor

from tests.families import by_hand, tiny
from vtc.methods.base import Method

SIDE, PATCHES = 4, 17
IMPOSSIBLE: dict[str, str] = {}


def build() -> Any:
    torch.manual_seed(0)
    vision = dict(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_global_layers=2,
        attention_heads=4,
        image_size=32,
        patch_size=8,
        max_num_tiles=4,
        intermediate_layers_indices=[1, 2],
        vision_output_dim=96,
        supported_aspect_ratios=[[1, 1], [1, 2], [2, 1], [2, 2]],
    )
    text = {**tiny.TEXT, "num_hidden_layers": 4, "cross_attention_layers": [1, 3]}
    model = tf.MllamaForConditionalGeneration(
        tf.MllamaConfig(vision_config=vision, text_config=text, image_token_index=tiny.IMAGE)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gate" in name:
                parameter.fill_(1.0)  # closed at the start: images would not matter
    return tiny.finished(model)


def inputs(rows: tuple[int, ...] = (4, 2)) -> dict[str, Tensor]:
    """One image a row, with that many tiles, left-padded text."""
    rng = torch.Generator().manual_seed(0)
    count, length = len(rows), 10
    pixels = torch.randn(count, 1, 4, 3, 32, 32, generator=rng)
    ids = torch.randint(*tiny.WORDS, (count, length), generator=rng)
    ids[:, 2] = tiny.IMAGE
    mask = torch.ones(count, length, dtype=torch.long)
    tiles = torch.zeros(count, 1, 4, dtype=torch.long)
    cross = torch.zeros(count, length, 1, 4, dtype=torch.long)
    for row, number in enumerate(rows):
        tiles[row, 0, :number] = 1
        cross[row, 2:, 0, :number] = 1
        pixels[row, 0, number:] = 0
    ratios = torch.tensor([[4 if number == 4 else 2] for number in rows])
    return dict(
        input_ids=ids,
        attention_mask=mask,
        pixel_values=pixels,
        aspect_ratio_mask=tiles,
        aspect_ratio_ids=ratios,
        cross_attention_mask=cross,
    )


def first_row(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value[:1] for name, value in batch.items()}


@contextmanager
def given(model: Any, batch: dict[str, Tensor], method: Method | None) -> Iterator[None]:
    """The bare model, its tower returning what `method` leaves of every tile; None: all there is."""
    tower = model.model.vision_model
    names = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
    with torch.no_grad():
        states = tower(**{name: batch[name] for name in names}).last_hidden_state
    if method is not None:
        seen = by_hand.record(model, method, batch)
        count = len(seen[0][1]) // seen[0][0].frames
        kept = states[:, :, :, :count].clone()  # of padding tiles, which nobody looks at, the first
        for row, (tokens, out) in enumerate(seen):
            own = states[row, 0, : tokens.frames].flatten(0, 1)
            rows = [
                out.features[k] if out.patch[k] >= 0 else own[out.anchor[k]]
                for k in range(len(out))
            ]
            kept[row, 0, : tokens.frames] = torch.stack(rows).unflatten(0, (-1, count))
        states = kept
        tower.num_patches = count

    def forward(pixel_values: Tensor, **_: Any) -> Any:
        copies = len(pixel_values) // len(states)  # of beams
        return tf.modeling_outputs.BaseModelOutput(
            last_hidden_state=states.repeat_interleave(copies, 0)
        )

    tower.forward = forward
    try:
        yield
    finally:
        del tower.forward
        tower.num_patches = PATCHES
