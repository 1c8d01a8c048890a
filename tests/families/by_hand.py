"""The reference: a prompt shortened in Python loops, and the language model without the plug-in.

Only what a method returned is taken from a patched run (`record`); features behind it, positions, slots
and masks are put together here, one row at a time and without padding.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    BaseModelOutputWithDeepstackFeatures as Output,
)

import vtc
from tests import asking
from tests.device import DEVICE
from tests.families import copies, tiny
from vtc.methods.base import Method
from vtc.tokens import CompressedTokens, VisualTokens

Seen = list[tuple[VisualTokens, CompressedTokens]]


@dataclass
class Short:
    """One short prompt.

    Attributes:
        embeds: `[1, S, D]`.
        ids: `[1, S]`.
        positions: `[1, S]`, or `[4, 1, S]` with M-RoPE.
        types: token types by argument name, `[1, S]` each.
        columns: the column of the long row that each token stands for.
        sources: the column that gives each token its position.
        features: modality -> compressed features, one `[M, D]` an image or clip.
        deep: modality -> level -> the same rows for deeper decoder layers.
        weights: how many tokens attention takes each for; empty where each is one.
    """

    embeds: Tensor
    ids: Tensor
    positions: Tensor
    types: dict[str, Tensor]
    columns: list[int]
    sources: list[int] = field(default_factory=list)
    features: dict[str, list[Tensor]] = field(default_factory=dict)
    deep: dict[str, list[list[Tensor]]] = field(default_factory=dict)
    weights: list[int] = field(default_factory=list)


def record(model: nn.Module, method: Method, batch: dict[str, Any]) -> Seen:
    """What the method was given and what it returned, in the order of images, then clips."""
    seen: Seen = []
    cls = type(method)

    def compress(self: Method, tokens: VisualTokens) -> CompressedTokens:
        out = cls.compress(self, tokens)
        seen.append((tokens, out))
        return out

    watched = copy.copy(method)
    watched.__class__ = type(cls.__name__, (cls,), {})
    watched.__class__.compress = compress  # around the guards of the base class
    with torch.no_grad(), vtc.compress(model, watched, processor=asking.tokenizer()):
        model(**batch)
    return seen


@torch.no_grad()
def shorten(model: nn.Module, batch: dict[str, Any], method: Method, policy: str) -> Short:
    """The short prompt of a batch of one row; columns that its mask hides are not in it."""
    base = model.model
    seen = iter(record(model, method, batch))
    given = batch["input_ids"][0]
    ids = given.tolist()
    shown = batch["attention_mask"][0].bool().tolist()
    long = long_positions(model, batch)
    slots: dict[int, list[tuple[Tensor, int, int]]] = {}  # tokens may share an anchor
    runs: dict[str, list[int]] = {}
    short = Short(torch.empty(0), torch.empty(0), torch.empty(0), {}, [])
    for kind, token, key in (
        ("image", tiny.IMAGE, "pixel_values"),
        ("video", tiny.VIDEO, "pixel_values_videos"),
    ):
        runs[kind] = [i for i, t in enumerate(ids) if t == token]
        if key not in batch:
            continue
        output = encode(base, kind, batch)
        packed = torch.cat([part.flatten(0, -2) for part in output.pooler_output])
        levels = [torch.cat(list(level)) for level in getattr(output, "deepstack_features", [])]
        short.features[kind], short.deep[kind] = [], [[] for _ in levels]
        places, start = runs[kind], 0
        while start < len(places):
            tokens, out = next(seen)
            left = [shown[place] for place in places[start : start + tokens_of(tokens)]]
            length = len(left)
            mine = packed[start : start + length][left]
            check_features(tokens, mine, method)
            features = []
            for k in range(len(out)):
                if out.patch[k] < 0:
                    features.append(mine[out.anchor[k]])
                elif method.stage == "vision" and not same_width(out, packed):
                    features.append(base.multi_modal_projector(out.features[k][None, None])[0, 0])
                else:
                    features.append(out.features[k])
            anchors = out.anchor.tolist()
            mine_at = [p for p, is_left in zip(places[start:], left, strict=False) if is_left]
            for k, slot in enumerate(sorted(anchors)):
                weight = round(float(out.weight[k])) if method.weighs else 1
                assert not method.weighs or weight == out.weight[k]
                source = mine_at[anchors[k]]
                slots.setdefault(mine_at[slot], []).append((features[k], source, weight))
            short.features[kind].append(torch.stack(features))
            for level, rows in enumerate(levels):
                short.deep[kind][level].append(rows[start : start + length][left][out.anchor])
            start += length
    embed = model.get_input_embeddings()
    embeds, columns, sources, weights = [], [], [], []
    for column, token in enumerate(ids):
        visual = token in (tiny.IMAGE, tiny.VIDEO) or not shown[column]
        text = [] if visual else [(embed(given[column]), column, 1)]
        for vector, source, weight in slots.get(column, text):
            embeds.append(vector.to(model.dtype))
            columns.append(column)
            sources.append(source)
            weights.append(weight)
    if method.weighs:
        short.weights = weights
    short.embeds = torch.stack(embeds)[None]
    short.ids = batch["input_ids"][:, columns]
    short.columns, short.sources = columns, sources
    short.positions = short_positions(long, sources, policy)
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in batch:
            short.types[name] = batch[name][:, columns]
    return short


def tokens_of(tokens: VisualTokens) -> int:
    """The placeholders of an image, those that the mask hides included."""
    return tokens.packing.length + len(tokens.packing.hidden)


@torch.no_grad()
def followed(model: nn.Module, short: Short, batch: dict[str, Any], policy: str) -> Short:
    """The short prompt of `batch`, one row that is that of `short` with text behind it."""
    start = short.columns[-1] + 1 if short.columns else 0
    columns = list(range(start, batch["input_ids"].shape[1]))
    more = model.get_input_embeddings()(batch["input_ids"][:, columns]).to(model.dtype)
    every, sources = [*short.columns, *columns], [*short.sources, *columns]
    return replace(
        short,
        embeds=torch.cat([short.embeds, more], 1),
        ids=batch["input_ids"][:, every],
        positions=short_positions(long_positions(model, batch), sources, policy),
        types={name: batch[name][:, every] for name in short.types},
        columns=every,
        sources=sources,
        weights=short.weights and [*short.weights, *[1] * len(columns)],
    )


def same_width(out: CompressedTokens, packed: Tensor) -> bool:
    """Whether the method worked on what the projector returned."""
    return out.features.shape[1] == packed.shape[1]


def check_features(tokens: VisualTokens, packed: Tensor, method: Method) -> None:
    """The method was given what the bare model packs."""
    if tokens.features.shape[-1] != packed.shape[-1]:
        assert method.stage == "vision"
        return
    for place, (tile, patch) in enumerate(
        zip(tokens.layout.tile, tokens.layout.patch, strict=True)
    ):
        if patch >= 0:
            torch.testing.assert_close(
                tokens.features[tile, patch], packed[place], atol=1e-5, rtol=1e-5
            )


def encode(base: nn.Module, kind: str, batch: dict[str, Any]) -> Any:
    """The bare model's own features."""
    function = getattr(base, f"get_{kind}_features")
    names = ("pixel_values", "image_sizes", "image_grid_thw", "batch_num_images")
    if kind == "video":
        names = ("pixel_values_videos", "video_grid_thw")
    return function(**{n: batch[n] for n in names if n in batch}, return_dict=True)


def long_positions(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """`[L]`, or `[3, L]` with M-RoPE, of the uncompressed row."""
    if hasattr(model.model, "get_rope_index"):
        names = ("mm_token_type_ids", "image_grid_thw", "video_grid_thw", "attention_mask")
        arguments = {n: batch[n] for n in names if n in batch}
        return model.model.get_rope_index(batch["input_ids"], **arguments)[0][:, 0]
    return (batch["attention_mask"][0].cumsum(0) - 1).clamp(min=0)


def short_positions(long: Tensor, sources: list[int], policy: str) -> Tensor:
    """Positions by their definition, axis by axis."""
    count = torch.arange(len(sources), device=DEVICE)
    if policy == "contiguous":
        rows = [count] * (3 if long.dim() == 2 else 1)
    else:
        rows = [axis[sources] for axis in (long if long.dim() == 2 else long[None])]
    if policy == "regrid":
        rows = [r.unique(return_inverse=True)[1] for r in rows]
    return torch.stack([count, *rows])[:, None] if long.dim() == 2 else rows[0][None]


@torch.no_grad()
def logits(model: nn.Module, short: Short) -> Tensor:
    """`[S, V]`: the language model alone."""
    if short.weights:
        return copies.logits(model, short)
    mask = torch.ones_like(short.ids)
    common = dict(inputs_embeds=short.embeds, position_ids=short.positions, attention_mask=mask)
    if "token_type_ids" in short.types:  # the mask is built from them outside the language model
        first = int(type(model).__name__.startswith("PaliGemma"))
        common["position_ids"] = short.positions + first
        return model(**common, token_type_ids=short.types["token_type_ids"]).logits[0]
    language = getattr(model.model, "language_model", None) or model.model.text_model
    if any(short.deep.values()):
        common.update(deep_arguments(short))
    return model.lm_head(language(**common, use_cache=False).last_hidden_state)[0]


def deep_arguments(short: Short) -> dict[str, Any]:
    """Qwen3's rows for deeper layers, in the order of the prompt."""
    visual = [int(t) for t in short.ids[0] if t in (tiny.IMAGE, tiny.VIDEO)]
    where = (short.ids == tiny.IMAGE) | (short.ids == tiny.VIDEO)
    levels = []
    for level in range(max(map(len, short.deep.values()))):
        rows = {k: iter(torch.cat(v[level])) for k, v in short.deep.items() if v}
        kinds = ["image" if t == tiny.IMAGE else "video" for t in visual]
        levels.append(torch.stack([next(rows[kind]) for kind in kinds]))
    return dict(visual_pos_masks=where, deepstack_visual_embeds=levels)


@torch.no_grad()
def generate(model: nn.Module, short: Short, **ask: Any) -> list[int]:
    """New tokens of the bare model that is given embeddings instead of images."""
    mask = torch.ones_like(short.ids)
    common = dict(position_ids=short.positions, attention_mask=mask)
    if "token_type_ids" in short.types:
        common["token_type_ids"] = short.types["token_type_ids"]
    gemma = "token_type_ids" in short.types
    if gemma or any(short.deep.values()):  # where embeddings are refused, or not all there is
        common["mm_encoder_outputs"] = {
            kind: Output(
                # one entry a prompt: for beams, transformers 5.18 repeats entries one by one
                pooler_output=torch.cat(features)[None] if gemma else [torch.cat(features)],
                deepstack_features=[[torch.cat(level)] for level in short.deep[kind]] or None,
            )
            for kind, features in short.features.items()
        }
        out = model.generate(short.ids, **common, **ask)
        return out[0, short.ids.shape[1] :].tolist()
    return model.generate(inputs_embeds=short.embeds, **common, **ask)[0].tolist()
