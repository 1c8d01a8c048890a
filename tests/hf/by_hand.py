"""The reference: prompts shortened by hand, and the language model alone.

Nothing here calls the plug-in. Images go one at a time through the tower (eager hidden states) and the
projector, the method runs on `VisualTokens` made here, the short prompt is put together in a Python
loop, and `language_model` + `lm_head` decode with a cache loop of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from tests.device import DEVICE
from tests.hf import tiny
from vtc.functional.anyres import tile_grid
from vtc.methods.base import Method
from vtc.tokens import CompressedTokens, VisualTokens


@dataclass
class Row:
    """One short prompt.

    Attributes:
        ids: token ids, the placeholder for what is left of images.
        embeds: `[S, D]`.
        positions: the position of each token.
        columns: the column of the long row that each token stands for.
        features: what the images were compressed to, one `[M, D]` an image.
    """

    ids: list[int]
    embeds: Tensor
    positions: list[int]
    columns: list[int]
    features: list[Tensor]


def image_tokens(model: nn.Module, pixels: Tensor, size: Any, method: Method) -> VisualTokens:
    """`VisualTokens` of one image from its tiles `[T, 3, H, W]`, with the attention signals."""
    base = model.model
    config = base.config
    cls = hasattr(base.vision_tower.embeddings, "class_embedding")
    hidden = base.vision_tower(pixels, output_hidden_states=True).hidden_states
    # VipLLaVA's older configurations have the plural
    layers = getattr(config, "vision_feature_layer", None) or config.vision_feature_layers
    layers = [layers] if isinstance(layers, int) else layers
    raw = torch.cat([hidden[layer][:, int(cls) :] for layer in layers], dim=-1)
    newline = getattr(base, "image_newline", None)
    tokens = VisualTokens(
        features=raw if method.stage == "vision" else base.multi_modal_projector(raw),
        patch_grid=(tiny.TILE // tiny.PATCH,) * 2,
        tile_grid=None if newline is None else _grid(size),
        image_size=None if newline is None else size,
        newline=newline,
        unpad="none" if newline is None else "hf",
    )
    if method.signals:
        signals = {
            name: _attention(base, hidden, request.kind, request.layer)
            for name, request in method.requests(cls).items()
        }
        tokens = replace(tokens, signals=signals)
    return tokens


def compressed(
    model: nn.Module, method: Method, pixels: Tensor, size: Any
) -> tuple[Tensor, CompressedTokens]:
    """Features in the language model's width, and what the method returned."""
    tokens = image_tokens(model, pixels, size, method)
    out = method.compress(tokens)
    features = out.features
    if method.stage == "vision":
        features = model.model.multi_modal_projector(features[None])[0]
        for place in range(len(features)):
            if out.patch[place] < 0:
                features = torch.cat(
                    [features[:place], tokens.newline[None], features[place + 1 :]]
                )
    return features, out


def rows(
    model: nn.Module, inputs: dict[str, Tensor], method: Method, positions: str = "original"
) -> list[Row]:
    """Every row of a batch, shortened by hand and without padding."""
    embed = model.get_input_embeddings()
    images = iter(_images(inputs))
    count = sum(1 for _ in _images(inputs))
    out, index = [], 0
    for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
        columns = [i for i in range(len(ids)) if mask[i]]
        length = {c: k for k, c in enumerate(columns)}  # position in the row without padding
        places = [c for c in columns if ids[c] == tiny.IMAGE]
        row = Row([], torch.empty(0), [], [], [])
        slots: dict[int, tuple[Tensor, int]] = {}
        while places:
            pixels, size = next(images)
            features, got = compressed(model, method.for_image(index, count), pixels, size)
            index += 1
            tokens = image_tokens(model, pixels, size, method)
            run, places = places[: len(tokens.layout)], places[len(tokens.layout) :]
            anchors = got.anchor.tolist()
            for rank, anchor in enumerate(sorted(anchors)):
                slots[run[anchor]] = (features[rank], length[run[anchors[rank]]])
            row.features.append(features)
        embeds = []
        for column in columns:
            token = int(ids[column])
            if token == tiny.IMAGE:
                if column not in slots:
                    continue
                vector, position = slots[column]
            else:
                vector, position = embed(ids[column]), length[column]
            row.ids.append(token)
            row.columns.append(column)
            row.positions.append(position)
            embeds.append(vector.to(model.dtype))
        row.embeds = torch.stack(embeds)
        if positions == "contiguous":
            row.positions = list(range(len(embeds)))
        out.append(row)
    return out


def logits(model: nn.Module, row: Row) -> Tensor:
    """`[S, V]` of one short prompt, the language model alone."""
    hidden = model.model.language_model(
        inputs_embeds=row.embeds[None],
        attention_mask=torch.ones(1, len(row.ids), dtype=torch.long, device=DEVICE),
        position_ids=torch.tensor([row.positions], device=DEVICE),
        use_cache=False,
    ).last_hidden_state
    return model.lm_head(hidden)[0]


@torch.no_grad()
def greedy(model: nn.Module, row: Row, new: int) -> tuple[list[int], Tensor]:
    """Greedy tokens and the logits of each step, with a cache loop of its own."""
    cache = DynamicCache(config=model.config.get_text_config())
    embeds, positions = row.embeds[None], torch.tensor([row.positions], device=DEVICE)
    tokens: list[int] = []
    steps: list[Tensor] = []
    for _ in range(new):
        hidden = model.model.language_model(
            inputs_embeds=embeds, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state
        step = model.lm_head(hidden)[0, -1].float()
        step[tiny.IMAGE] = -torch.inf
        steps.append(step)
        tokens.append(int(step.argmax()))
        embeds = model.get_input_embeddings()(torch.tensor([[tokens[-1]]], device=DEVICE))
        positions = positions[:, -1:] + 1
    return tokens, torch.stack(steps)


def padded(short: list[Row]) -> dict[str, Tensor]:
    """`inputs_embeds`, mask and positions of a left-padded batch of short prompts."""
    width = max(len(row.ids) for row in short)

    def left(values: Tensor, fill: float = 0) -> Tensor:
        gap = width - len(values)
        return torch.cat([values.new_full((gap, *values.shape[1:]), fill), values])

    return {
        "inputs_embeds": torch.stack([left(row.embeds) for row in short]),
        "attention_mask": torch.stack(
            [left(torch.ones(len(r.ids), dtype=torch.long, device=DEVICE)) for r in short]
        ),
        "position_ids": torch.stack(
            [left(torch.tensor(row.positions, device=DEVICE)) for row in short]
        ),
    }


def _grid(size: tuple[int, int]) -> tuple[int, int]:
    return tile_grid(size, [tuple(p) for p in tiny.PINPOINTS], tiny.TILE)


def _images(inputs: dict[str, Tensor]):
    if "pixel_values" not in inputs:
        return
    for i, pixels in enumerate(inputs["pixel_values"]):
        if "image_sizes" not in inputs:
            yield pixels[None], None
            continue
        size = tuple(inputs["image_sizes"][i].tolist())
        grid = _grid(size)
        yield pixels[: 1 + grid[0] * grid[1]], size


def _attention(base: nn.Module, hidden: Any, kind: str, layer: int | float) -> Tensor:
    """A signal from a layer's input, by its own projections and the full attention matrix."""
    depth = len(base.vision_tower.encoder.layers)
    index = layer if layer >= 0 else depth + layer
    block = base.vision_tower.encoder.layers[index]
    x = block.layer_norm1(hidden[index])
    module = block.self_attn
    heads = module.num_heads

    def split(values: Tensor) -> Tensor:
        return values.unflatten(-1, (heads, -1)).transpose(1, 2)

    query, key = split(module.q_proj(x)), split(module.k_proj(x))
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if kind == "cls_logits":
        return scores[:, :, 0, 1:].mean(1)
    return scores.softmax(-1).mean((1, 2))
