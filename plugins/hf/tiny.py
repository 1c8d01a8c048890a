"""Tiny random models and prompts for them: what `checks` runs on where no checkpoint is at hand.

A tiny model has the classes of a real one and a few small layers. Its prompts are made without a
processor: the arguments of `get_image_features` tell in which form the family takes pixels, and what
that function returns tells how many placeholders an image needs.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vtc.errors import VTCError
from vtc.functional.anyres import tile_grid
from vtc.plugins.hf.typing import Model

PAD, BOS, EOS, IMAGE, VIDEO, START, VOCAB = 0, 1, 2, 60, 61, 62, 64
WORDS = (3, 60)
TILE, PATCH = 32, 8
PINPOINTS = [[TILE, 2 * TILE], [2 * TILE, TILE], [2 * TILE, 2 * TILE]]

# Every family's names of the same sizes; a configuration ignores the names that it does not know.
_TEXT: dict[str, Any] = dict(
    vocab_size=VOCAB,
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=12,
    max_position_embeddings=512,
    num_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=32,
    initializer_range=0.3,
    pad_token_id=PAD,
    bos_token_id=BOS,
    eos_token_id=EOS,
)
_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}
_VISION: dict[str, Any] = dict(
    hidden_size=32,
    embed_dim=32,
    intermediate_size=48,
    out_hidden_size=48,
    projection_dim=48,
    num_hidden_layers=2,
    depth=2,
    num_attention_heads=4,
    num_heads=4,
    head_dim=8,
    mlp_ratio=2,
    image_size=TILE,
    patch_size=PATCH,
    num_position_embeddings=64,
    window_size=32,
    fullatt_block_indexes=[1],
    deepstack_visual_indexes=[0, 1],
    vision_use_head=False,
    initializer_range=0.3,
)
_WHOLE: dict[str, Any] = dict(
    image_token_id=IMAGE,
    image_token_index=IMAGE,
    video_token_id=VIDEO,
    video_token_index=VIDEO,
    vision_start_token_id=START,
    pad_token_id=PAD,
    image_grid_pinpoints=PINPOINTS,
    vision_aspect_ratio="anyres_max_9",
    downsample_ratio=0.5,
    downsample_factor=2,
    alignment_intermediate_size=48,
    scale_factor=2,
    projection_dim=48,
    mm_tokens_per_image=4,
)

#: name -> model class, language model, vision tower; empty for the class's own
FAMILIES: dict[str, tuple[str, str, str]] = {
    "llava": ("LlavaForConditionalGeneration", "llama", "clip_vision_model"),
    "llava_next": ("LlavaNextForConditionalGeneration", "llama", "clip_vision_model"),
    "llava_onevision": ("LlavaOnevisionForConditionalGeneration", "qwen2", "siglip_vision_model"),
    "qwen2_5_vl": ("Qwen2_5_VLForConditionalGeneration", "", ""),
    "qwen3_vl": ("Qwen3VLForConditionalGeneration", "", ""),
    "internvl": ("InternVLForConditionalGeneration", "qwen2", ""),
    "idefics3": ("Idefics3ForConditionalGeneration", "llama", ""),
    "gemma3": ("Gemma3ForConditionalGeneration", "gemma3_text", "siglip_vision_model"),
}


def build(family: str, seed: int = 0) -> nn.Module:
    """A tiny model of one of `FAMILIES`."""
    name, text, vision = FAMILIES[family]
    return _build(getattr(transformers, name), text, vision, seed)


def same_family(model: Model, seed: int = 0) -> nn.Module:
    """A tiny model of the class of `model`, with the same kinds of tower and language model.

    Raises:
        Exception: of whatever kind, where the class cannot be made in this way.
    """
    config = model.config
    text, vision = (getattr(config, f"{part}_config", None) for part in ("text", "vision"))
    kinds = getattr(text, "model_type", ""), getattr(vision, "model_type", "")
    with torch.device("meta"):
        size = sum(p.numel() for p in type(model)(_config(type(model), *kinds)).parameters())
    if size > _MOST:
        raise VTCError(f"model: a tiny {type(model).__name__} still has {size} parameters")
    return _build(type(model), *kinds, seed)


#: parameters that a tiny model may have: a family with parts of other names would not be tiny
_MOST = 1_000_000


def _config(cls: Any, text: str, vision: str) -> Any:
    sizes = dict(_VISION)
    if "Qwen2VL" in cls.__name__:
        sizes["hidden_size"] = _TEXT["hidden_size"]  # behind the merger; inside it is embed_dim
    if "internvl" in cls.__name__.lower():
        sizes.update(image_size=[TILE, TILE], patch_size=[PATCH, PATCH])
    more: dict[str, Any] = {}
    if vision == "clip_vision_model":  # has a CLS token, which the strategy leaves out
        more = dict(vision_feature_layer=-2, vision_feature_select_strategy="default")
    elif vision in ("siglip_vision_model", "pixtral"):
        more = dict(vision_feature_layer=-1, vision_feature_select_strategy="full")
    if "VipLlava" in cls.__name__:
        more = dict(vision_feature_layers=[-2, 1])
    words = dict(_TEXT)
    if "Qwen" in cls.__name__ or "Glm" in cls.__name__:
        words["rope_parameters"] = _ROPE
    return cls.config_class(
        text_config={**({"model_type": text} if text else {}), **words},
        vision_config={**({"model_type": vision} if vision else {}), **sizes},
        **_WHOLE,
        **more,
    )


def _build(cls: Any, text: str, vision: str, seed: int) -> nn.Module:
    # On the CPU and with numbers of its own, whatever the caller has set for his models
    with torch.device("cpu"), torch.no_grad(), _Draws(seed):
        built = cls(_config(cls, text, vision)).float()
        for name, parameter in built.named_parameters():
            if name.endswith(("image_newline", "mm_input_projection_weight")):
                parameter.normal_(0.0, 0.3)  # are zeros at first
    built.generation_config.suppress_tokens = [IMAGE, VIDEO]
    built.generation_config.eos_token_id = None
    built.generation_config.pad_token_id = PAD
    return built.eval()


class _Draws(TorchDispatchMode):
    """Inside the block random weights come from a generator of their own, in this thread alone, so that
    the caller's random numbers stay what they are."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator("cpu").manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func, takes = _WITH_GENERATOR.get(func, (func, False))
        given = {"generator": self.generator} if takes else {}
        return func(*args, **{**(kwargs or {}), **given})


_aten = torch.ops.aten
#: what draws -> the same with a generator
_WITH_GENERATOR: dict[Any, tuple[Any, bool]] = {
    _aten.normal_.default: (_aten.normal_.default, True),
    _aten.uniform_.default: (_aten.uniform_.default, True),
    _aten.randn.default: (_aten.randn.generator, True),
    _aten.rand.default: (_aten.rand.generator, True),
}


#: heights and widths of the images of each row
Rows = Sequence[Sequence[tuple[int, int]]]


def prompts(model: Model, rows: Rows, first: int = 0) -> dict[str, Any]:
    """A batch with images for a tiny model, padded on the left.

    Args:
        model: from `build` or `same_family`, not compressed.
        rows: sizes of the images of each row; a family with one size of tiles takes none of them.
        first: number of the first row: row n is the same in every batch.
    """
    base = model.base_model
    accepted = inspect.signature(base.get_image_features).parameters
    draws = [torch.Generator("cpu").manual_seed(first + row) for row in range(len(rows))]
    images = [(size, draw) for row, draw in zip(rows, draws, strict=True) for size in row]
    if "image_grid_thw" in accepted:
        pixels = _grids(base, images)
    elif hasattr(base, "image_newline"):
        pixels = _crops(rows, images)
    else:
        tiles = torch.stack([_picture((TILE, TILE), draw) for _, draw in images])
        pixels = {"pixel_values": tiles}
        if "pixel_attention_mask" in accepted:
            pixels = {"pixel_values": _by_row(rows, tiles)}
        elif getattr(base.config.vision_config, "model_type", "") == "pixtral":
            pixels["image_sizes"] = torch.tensor([(TILE, TILE)] * len(images))
    counts = iter(_tokens(base, accepted, pixels, len(images)))
    texts: list[list[int]] = []
    for row, draw in zip(rows, draws, strict=True):
        ids = [BOS, *_words(draw, 2 + first + len(texts))]
        for _ in row:
            ids += [START] if "image_grid_thw" in accepted else []
            ids += [IMAGE] * next(counts) + _words(draw, 2)
        texts.append(ids + _words(draw, 6))
    width = max(map(len, texts))
    out = {
        "input_ids": torch.tensor([[PAD] * (width - len(t)) + t for t in texts]),
        "attention_mask": torch.tensor([[0] * (width - len(t)) + [1] * len(t) for t in texts]),
        **pixels,
    }
    takes, shown = inspect.signature(type(model).forward).parameters, out["input_ids"] == IMAGE
    if "mm_token_type_ids" in takes:
        out["mm_token_type_ids"] = shown.long()
    if "token_type_ids" in takes:
        # PaliGemma's types tell the answer from the question, not images from text
        prefix = model.config.model_type == "paligemma"
        out["token_type_ids"] = torch.zeros_like(out["input_ids"]) if prefix else shown.long()
    return out


def _words(draw: torch.Generator, count: int) -> list[int]:
    return torch.randint(*WORDS, (count,), generator=draw, device="cpu").tolist()


def _picture(size: tuple[int, int], draw: torch.Generator) -> Tensor:
    rough = torch.randn(1, 3, 4, 4, generator=draw, device="cpu", dtype=torch.float32)
    return nn.functional.interpolate(rough, size, mode="bilinear")[0]


def _grids(base: Model, images: list[Any]) -> dict[str, Tensor]:
    """Rows of patches, and the grids that they stand in."""
    vision = base.config.vision_config
    merge = getattr(vision, "spatial_merge_size", 2)
    frames = getattr(vision, "temporal_patch_size", 2)
    grids = [[1, *(max(x // PATCH // merge, 1) * merge for x in size)] for size, _ in images]
    width = 3 * frames * PATCH * PATCH
    pixels = [
        torch.randn(rows * cols, width, generator=draw, device="cpu", dtype=torch.float32)
        for (_, rows, cols), (_, draw) in zip(grids, images, strict=True)
    ]
    return {"pixel_values": torch.cat(pixels), "image_grid_thw": torch.tensor(grids)}


def _crops(rows: Rows, images: list[Any]) -> dict[str, Tensor]:
    """A thumbnail and crops an image, `[images, most tiles, 3, h, w]`."""
    tiles = []
    for size, draw in images:
        grid = tile_grid(size, [(h, w) for h, w in PINPOINTS], TILE)
        tiles.append(
            torch.stack([_picture((TILE, TILE), draw) for _ in range(1 + grid[0] * grid[1])])
        )
    return {
        "pixel_values": nn.utils.rnn.pad_sequence(tiles, batch_first=True),
        "image_sizes": torch.tensor([size for size, _ in images]),
        "batch_num_images": torch.tensor([len(row) for row in rows]),
    }


def _by_row(rows: Rows, tiles: Tensor) -> Tensor:
    """`[B, most tiles of a row, 3, h, w]`, padded with empty tiles."""
    return nn.utils.rnn.pad_sequence(
        list(tiles.split([len(row) for row in rows])), batch_first=True
    )


@torch.no_grad()
def _tokens(base: Model, accepted: Any, pixels: dict[str, Tensor], images: int) -> list[int]:
    """Visual tokens of every image. What the family does not take is dropped from `pixels`."""
    for name in pixels.keys() - accepted.keys():
        del pixels[name]
    features = base.get_image_features(**pixels, return_dict=True).pooler_output
    counts = [part.flatten(0, -2).shape[0] for part in features]
    if len(counts) == images:
        return counts
    return [sum(counts) // images] * images  # Idefics3 gives them row by row, all of one size
