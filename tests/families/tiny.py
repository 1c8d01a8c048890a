"""A tiny random model of every family, and batches with images and clips for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vtc
from tests.device import DEVICE, placed
from tests.families.models import (  # noqa: F401  (for the tests)
    BOS,
    IDS,
    IMAGE,
    PAD,
    PATCH,
    TEXT,
    TILE,
    VIDEO,
    VISION,
    WORDS,
    Family,
    _idefics,
    anyres,
    aya_vision,
    by_sample,
    cohere2_item,
    cohere2_vision,
    cut,
    gemma3,
    idefics_item,
    internvl,
    internvl_item,
    llava,
    llava_next,
    llava_next_video,
    llava_onevision,
    llava_siglip,
    one_tile,
    onevision_inputs,
    padded,
    paligemma,
    picture,
    pixtral,
    pixtral_item,
    qwen2_5_vl,
    qwen2_vl,
    qwen3_vl,
    qwen_inputs,
    qwen_item,
    siglip,
    stacked,
    video_llava,
    vipllava,
)
from vtc.methods.tokenflex import TokenFlexProjector
from vtc.plugins.hf.adapters import adapter_for

#: a family that vtc has no adapter for
UNKNOWN = "aya_vision"
FAMILIES: dict[str, Family] = {
    "llava": Family(llava, one_tile(16), stacked),
    "llava_siglip": Family(llava_siglip, one_tile(16), stacked),
    "llava_pixtral": Family(pixtral, pixtral_item, stacked),
    "vipllava": Family(vipllava, one_tile(16), stacked),
    "llava_next": Family(llava_next, anyres(), padded, crops=True),
    "llava_next_video": Family(llava_next_video, anyres(4), padded, ("image", "video"), True),
    "llava_onevision": Family(
        llava_onevision, anyres(4, 1, 9, True), onevision_inputs, ("image", "video"), True
    ),
    "llava_onevision_shrunk": Family(
        lambda: llava_onevision(1), anyres(4, 1, 1, True), onevision_inputs, ("image",), True
    ),
    "video_llava": Family(video_llava, one_tile(16, 17), stacked, ("image", "video")),
    "qwen2_vl": Family(qwen2_vl, qwen_item(False), qwen_inputs, ("image", "video")),
    "qwen2_5_vl": Family(qwen2_5_vl, qwen_item(False), qwen_inputs, ("image", "video")),
    "qwen3_vl": Family(qwen3_vl, qwen_item(True), qwen_inputs, ("image", "video")),
    "internvl": Family(internvl, internvl_item, stacked, crops=True),
    "idefics3": Family(lambda: _idefics("Idefics3"), idefics_item, by_sample, crops=True),
    "smolvlm": Family(lambda: _idefics("SmolVLM"), idefics_item, by_sample, crops=True),
    "cohere2_vision": Family(cohere2_vision, cohere2_item, stacked, crops=True),
    "paligemma": Family(paligemma, one_tile(16), stacked),
    "gemma3": Family(gemma3, one_tile(4), stacked),
    "aya_vision": Family(aya_vision, one_tile(4), stacked),
}


def build(name: str, seed: int = 0, attention: str = "sdpa") -> Any:
    """A random model of a family, `finished`."""
    torch.manual_seed(seed)
    return finished(FAMILIES[name].build(), attention)


def built(name: str) -> Any:
    """The model, or a skip where the transformers that is installed cannot run the family."""
    model = build(name)
    try:
        vtc.apply(model, "uniform").remove()
    except vtc.VTCError as error:  # an older transformers
        pytest.skip(str(error))
    return model


def finished(model: Any, attention: str = "sdpa") -> Any:
    """A random model in eval mode; large weights, so that tokens matter to the logits."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(2.0)
    model.set_attn_implementation(attention)
    # A random model may emit a placeholder, which transformers refuses to read back
    model.generation_config.suppress_tokens = [IMAGE, VIDEO]
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model.to(DEVICE).eval()


def projector(model: Any, seed: int = 0) -> TokenFlexProjector:
    """A projector for `tokenflex` that fits the model and was not trained."""
    found = adapter_for(model).projector(model.base_model)
    layers = [] if found is None else [m for m in found.modules() if hasattr(m, "in_features")]
    width = layers[0].in_features if layers else 1  # what reads no features needs no width
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TokenFlexProjector(width, model.config.get_text_config().hidden_size)


#: rows of `(kind, (height, width))`
Rows = list[list[tuple[str, tuple[int, int]]]]
A, B, C = ("image", (40, 60)), ("image", (70, 20)), ("image", (64, 64))
CLIP = ("video", (40, 60))
ONE: Rows = [[A]]
MIXED: Rows = [[A], [], [B, C], [C]]


def rows_of(name: str, video: bool = False) -> Rows:
    """A batch for the family that mixes what it can."""
    return [[CLIP], [A, CLIP], [C]] if video else MIXED


def inputs(name: str, rows: Rows, seed: int = 0, side: str = "left") -> dict[str, Any]:
    """A batch with token ids, mask, pixels and what else the family's processor makes."""
    family = FAMILIES[name]
    rng = torch.Generator().manual_seed(seed)

    def words(n: int) -> list[int]:
        return torch.randint(*WORDS, (n,), generator=rng).tolist()

    texts, items = [], []
    for row in rows:
        ids = [BOS, *words(int(torch.randint(2, 6, (1,), generator=rng)))]
        mine = []
        for kind, size in row:
            mine.append(family.item(kind, size, rng, sum(k == "image" for k, _ in row)))
            ids += mine[-1].ids + words(3)
        items.append(mine)
        texts.append(ids + words(4))
    width = max(map(len, texts))

    def pad(ids: list[int], fill: int) -> list[int]:
        gap = [fill] * (width - len(ids))
        return gap + ids if side == "left" else ids + gap

    out: dict[str, Any] = {
        "input_ids": torch.tensor([pad(t, PAD) for t in texts]),
        "attention_mask": torch.tensor([pad([1] * len(t), 0) for t in texts]),
        **family.collate(items),
    }
    types = (out["input_ids"] == IMAGE).long() + 2 * (out["input_ids"] == VIDEO).long()
    if name.startswith("qwen"):
        out["mm_token_type_ids"] = types
    if name == "gemma3":
        out["token_type_ids"] = types
    if name == "paligemma":  # everything up to the last words is the prefix
        out["token_type_ids"] = torch.zeros_like(types)
    return placed(out)


def alone(
    name: str, rows: Rows, index: int, seed: int = 0, side: str = "left", padded: bool = False
) -> dict[str, Any]:
    """Row `index` of the batch that `inputs` makes, by itself; `padded`: with its padding."""
    family = FAMILIES[name]
    batch = inputs(name, rows, seed, side)
    keep = batch["attention_mask"][index].bool() | padded
    out = {
        key: batch[key][index][keep][None]
        for key in ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
        if key in batch
    }
    rng = torch.Generator().manual_seed(seed)
    items = []
    for row in rows:  # the same draws in the same order
        torch.randint(*WORDS, (int(torch.randint(2, 6, (1,), generator=rng)),), generator=rng)
        mine = []
        for kind, size in row:
            mine.append(family.item(kind, size, rng, sum(k == "image" for k, _ in row)))
            torch.randint(*WORDS, (3,), generator=rng)
        items.append(mine)
        torch.randint(*WORDS, (4,), generator=rng)
    return placed({**out, **family.collate([items[index]])})
