"""How to make a tiny random model of every family, and the ids and pixels of one image or clip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as tf
from torch import Tensor
from torch.nn.functional import interpolate

from vtc.functional.anyres import tile_grid
from vtc.packing import Packing

PAD, BOS, EOS, VOCAB = 0, 1, 2, 96
IMAGE, VIDEO, FAKE, GLOBAL, START, NEWLINE = 90, 91, 92, 93, 94, 95
WORDS, ROWS = (3, 70), 70  # plain words; tags of rows and columns from 70 on
TILE, PATCH = 32, 8
PINPOINTS = [[32, 64], [64, 32], [64, 64], [32, 96], [96, 32]]

TEXT = dict(
    vocab_size=VOCAB,
    hidden_size=48,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=1024,
    pad_token_id=PAD,
    bos_token_id=BOS,
    eos_token_id=EOS,
    initializer_range=0.2,
)
VISION = dict(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=4,
    num_attention_heads=4,
    image_size=TILE,
    patch_size=PATCH,
)
IDS = dict(image_token_id=IMAGE, image_token_index=IMAGE)
BOTH = dict(IDS, video_token_id=VIDEO, video_token_index=VIDEO)


@dataclass
class Item:
    """One image or clip of a prompt.

    Attributes:
        kind: `"image"` or `"video"`.
        ids: what stands for it in the prompt, tags included.
        pixels: its part of the pixel input.
        extra: its part of other inputs, by name.
    """

    kind: str
    ids: list[int]
    pixels: Tensor
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """How to make a model and its inputs.

    Attributes:
        build: makes the model.
        item: `(kind, (height, width), generator, images in the row)` to `Item`.
        collate: the pixel inputs of all items, row by row.
        kinds: what the family takes.
        crops: whether its images have a thumbnail and crops.
    """

    build: Callable[[], torch.nn.Module]
    item: Callable[[str, tuple[int, int], torch.Generator, int], Item]
    collate: Callable[[list[list[Item]]], dict[str, Any]]
    kinds: tuple[str, ...] = ("image",)
    crops: bool = False


def picture(size: tuple[int, int], rng: torch.Generator) -> Tensor:
    """A smooth random picture `[3, height, width]`, so that crops can be told apart."""
    return interpolate(torch.randn(1, 3, 6, 6, generator=rng), size, mode="bilinear")[0]


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(image[None], size, mode="bilinear", antialias=True)[0]


def cut(image: Tensor, grid: tuple[int, int]) -> list[Tensor]:
    """Crops of a picture stretched to the grid, row-major, the thumbnail in front."""
    whole = resized(image, (grid[0] * TILE, grid[1] * TILE))
    tiles = whole.unflatten(1, (grid[0], TILE)).unflatten(3, (grid[1], TILE))
    crops = tiles.permute(1, 3, 0, 2, 4).flatten(0, 1)
    return [resized(image, (TILE, TILE)), *crops]


# -- LLaVA and its kin ------------------------------------------------------------------------


def llama() -> Any:
    return tf.LlamaConfig(**TEXT)


def clip() -> Any:
    return tf.CLIPVisionConfig(**VISION)


def siglip(**more: Any) -> Any:
    return tf.SiglipVisionConfig(**{**VISION, **more}, vision_use_head=False)


def stacked(rows: list[list[Item]]) -> dict[str, Any]:
    """Items whose pixels are tiles: all tiles of all images in one batch; clips one by one."""
    out: dict[str, Any] = {}
    for kind, key in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        items = [item for row in rows for item in row if item.kind == kind]
        if items:
            join = torch.cat if kind == "image" else torch.stack
            out[key] = join([item.pixels for item in items])
            for name in items[0].extra:
                out[name] = torch.tensor([item.extra[name] for item in items])
    return out


def padded(rows: list[list[Item]]) -> dict[str, Any]:
    """The same with `[images, most tiles, 3, h, w]` for images."""
    out = stacked([[item for item in row if item.kind == "video"] for row in rows])
    items = [item for row in rows for item in row if item.kind == "image"]
    if items:
        most = max(len(item.pixels) for item in items)
        gaps = [item.pixels.new_zeros(most - len(item.pixels), 3, TILE, TILE) for item in items]
        out["pixel_values"] = torch.stack(
            [torch.cat([item.pixels, gap]) for item, gap in zip(items, gaps, strict=True)]
        )
        out["image_sizes"] = torch.tensor([item.extra["image_sizes"] for item in items])
    return out


def one_tile(tokens: int, per_frame: int = 0) -> Callable[..., Item]:
    """Images of one square tile; clips of as many frames as the first number of their size."""

    def item(kind: str, size: tuple[int, int], rng: torch.Generator, count: int) -> Item:
        if kind == "image":
            return Item(kind, [IMAGE] * tokens, picture((TILE, TILE), rng)[None])
        frames = torch.stack([picture((TILE, TILE), rng) for _ in range(3)])
        return Item(kind, [VIDEO] * (3 * per_frame), frames)

    return item


def llava(vision: Any = None, **more: Any) -> Any:
    config = tf.LlavaConfig(text_config=llama(), vision_config=vision or clip(), **IDS, **more)
    return tf.LlavaForConditionalGeneration(config)


#: the last hidden state, all of it: of towers without CLS
WHOLE = dict(vision_feature_select_strategy="full", vision_feature_layer=-1)


def llava_siglip() -> Any:
    return llava(siglip(), **WHOLE)


def pixtral() -> Any:
    return llava(tf.PixtralVisionConfig(**{**VISION, "image_size": 64}, head_dim=8), **WHOLE)


def pixtral_item(kind: str, size: tuple[int, int], rng: torch.Generator, count: int) -> Item:
    height, width = (min(max(x // PATCH, 2), 8) * PATCH for x in size)
    pixels = torch.zeros(1, 3, 64, 64)
    pixels[0, :, :height, :width] = picture((height, width), rng)
    tokens = height * width // PATCH**2
    return Item(kind, [IMAGE] * tokens, pixels, {"image_sizes": (height, width)})


def vipllava(**more: Any) -> Any:
    config = tf.VipLlavaConfig(
        text_config=llama(),
        vision_config=clip(),
        vision_feature_layers=[-2, -3, 1],
        **IDS,
        **more,
    )
    return tf.VipLlavaForConditionalGeneration(config)


def _newline(model: Any) -> Any:
    torch.nn.init.normal_(model.model.image_newline)
    return model


def llava_next(vision: Any = None, **more: Any) -> Any:
    config = tf.LlavaNextConfig(
        text_config=llama(),
        vision_config=vision or clip(),
        image_grid_pinpoints=PINPOINTS,
        **IDS,
        **more,
    )
    return _newline(tf.LlavaNextForConditionalGeneration(config))


def llava_next_video() -> Any:
    config = tf.LlavaNextVideoConfig(
        text_config=llama(),
        vision_config=clip(),
        image_grid_pinpoints=PINPOINTS,
        spatial_pool_stride=2,
        **BOTH,
    )
    return _newline(tf.LlavaNextVideoForConditionalGeneration(config))


def llava_onevision(limit: int = 9) -> Any:
    config = tf.LlavaOnevisionConfig(
        text_config=tf.Qwen2Config(**TEXT),
        vision_config=siglip(),
        vision_feature_select_strategy="full",
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio=f"anyres_max_{limit}",
        **BOTH,
    )
    return _newline(tf.LlavaOnevisionForConditionalGeneration(config))


def anyres(per_frame: int = 0, newline: int = 0, limit: int | None = None, alone: bool = False):
    """Images with crops; `alone`: only where they are the single one of their row."""

    def item(kind: str, size: tuple[int, int], rng: torch.Generator, count: int) -> Item:
        if kind == "video":
            frames = torch.stack([picture((TILE, TILE), rng) for _ in range(3)])
            return Item(kind, [VIDEO] * (3 * per_frame + newline), frames)
        grid = tile_grid(size, [tuple(p) for p in PINPOINTS], TILE)
        tiles = torch.stack(cut(picture(size, rng), grid))
        crops = None if alone and count > 1 else grid
        side = TILE // PATCH
        tokens = Packing((side, side), crops, size, newline=True, shrink=limit).length
        return Item(kind, [IMAGE] * tokens, tiles, {"image_sizes": size})

    return item


def onevision_inputs(rows: list[list[Item]]) -> dict[str, Any]:
    out = padded(rows)
    if "pixel_values" in out:
        counts = [sum(item.kind == "image" for item in row) for row in rows]
        out["batch_num_images"] = torch.tensor([count for count in counts if count])
    return out


def video_llava() -> Any:
    config = tf.VideoLlavaConfig(text_config=llama(), vision_config=clip(), **BOTH)
    return tf.VideoLlavaForConditionalGeneration(config)


# -- Qwen -------------------------------------------------------------------------------------

ROPE = {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 10000.0}


def _qwen(name: str, vision: dict[str, Any], text: dict[str, Any]) -> Any:
    config = getattr(tf, f"{name}Config")(
        text_config={**TEXT, "rope_parameters": ROPE, **text},
        vision_config=vision,
        vision_start_token_id=START,
        **BOTH,
    )
    return getattr(tf, f"{name}ForConditionalGeneration")(config)


def qwen2_vl() -> Any:
    vision = dict(depth=4, embed_dim=32, hidden_size=48, num_heads=4, mlp_ratio=2, patch_size=PATCH)
    return _qwen("Qwen2VL", vision, {})


def qwen2_5_vl() -> Any:
    vision = dict(
        depth=4,
        hidden_size=32,
        intermediate_size=64,
        num_heads=4,
        out_hidden_size=48,
        patch_size=PATCH,
        window_size=32,
        fullatt_block_indexes=[1, 3],
    )
    return _qwen("Qwen2_5_VL", vision, {})


def qwen3_vl() -> Any:
    vision = dict(
        depth=4,
        hidden_size=32,
        intermediate_size=64,
        num_heads=4,
        out_hidden_size=48,
        patch_size=PATCH,
        num_position_embeddings=64,
        deepstack_visual_indexes=[1, 2],
    )
    return _qwen("Qwen3VL", vision, {"head_dim": 12})


def qwen3_vl_moe() -> Any:
    vision = dict(
        depth=4,
        hidden_size=32,
        intermediate_size=64,
        num_heads=4,
        out_hidden_size=48,
        patch_size=PATCH,
        num_position_embeddings=64,
        deepstack_visual_indexes=[1, 2],
    )
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
    return _qwen("Qwen3VLMoe", vision, {"head_dim": 12, **experts})


def glm4v() -> Any:
    vision = dict(
        depth=2,
        hidden_size=32,
        intermediate_size=48,
        num_heads=4,
        out_hidden_size=48,
        patch_size=PATCH,
        image_size=2 * TILE,
    )
    config = tf.Glm4vConfig(
        text_config={**TEXT, "rope_parameters": ROPE, "head_dim": 12},
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )
    return tf.Glm4vForConditionalGeneration(config)


def qwen_item(stamps: bool) -> Callable[..., Item]:
    """Grids of any size; `stamps`: clips are broken up by time stamps."""

    def item(kind: str, size: tuple[int, int], rng: torch.Generator, count: int) -> Item:
        rows, cols = (max(x // (2 * PATCH), 2) * 2 for x in size)
        frames = 1 if kind == "image" else 2
        pixels = torch.randn(frames * rows * cols, 3 * 2 * PATCH * PATCH, generator=rng)
        frame = [IMAGE if kind == "image" else VIDEO] * (rows * cols // 4)
        ids = [t for n in range(frames) for t in (START, 10 + n, *frame)] if stamps else []
        extra = {f"{kind}_grid_thw": (frames, rows, cols)}
        return Item(kind, ids or [START, *frame * frames], pixels, extra)

    return item


def qwen_inputs(rows: list[list[Item]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for kind, key in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        items = [item for row in rows for item in row if item.kind == kind]
        if items:
            out[key] = torch.cat([item.pixels for item in items])
            name = f"{kind}_grid_thw"
            out[name] = torch.tensor([item.extra[name] for item in items])
    return out


# -- tiles with pixel shuffle -------------------------------------------------------------------


def internvl() -> Any:
    vision = tf.InternVLVisionConfig(
        **{**VISION, "image_size": [TILE, TILE], "patch_size": [PATCH, PATCH]}
    )
    config = tf.InternVLConfig(
        text_config=tf.Qwen2Config(**TEXT), vision_config=vision, downsample_ratio=0.5, **IDS
    )
    return tf.InternVLForConditionalGeneration(config)


def internvl_item(kind: str, size: tuple[int, int], rng: torch.Generator, count: int) -> Item:
    grid = tile_grid(size, [tuple(p) for p in PINPOINTS], TILE)
    tiles = cut(picture(size, rng), grid)
    tiles = [*tiles[1:], tiles[0]] if size[0] != size[1] else tiles[:1]
    return Item(kind, [START, *[IMAGE] * (4 * len(tiles)), FAKE], torch.stack(tiles))


def _idefics(name: str) -> Any:
    vision = getattr(tf, f"{name}VisionConfig")(**VISION)
    config = getattr(tf, f"{name}Config")(
        text_config=llama(), vision_config=vision, scale_factor=2, pad_token_id=PAD, **IDS
    )
    return getattr(tf, f"{name}ForConditionalGeneration")(config)


def idefics_item(kind: str, size: tuple[int, int], rng: torch.Generator, count: int) -> Item:
    grid = tile_grid(size, [tuple(p) for p in PINPOINTS], TILE)
    tiles = cut(picture(size, rng), grid)
    ids: list[int] = []
    if size[0] == size[1]:
        tiles = tiles[:1]
    else:
        tiles = [*tiles[1:], tiles[0]]
        for row in range(grid[0]):
            for col in range(grid[1]):
                ids += [FAKE, ROWS + 4 * row + col, *[IMAGE] * 4]
            ids.append(NEWLINE)
        ids.append(NEWLINE)
    return Item(kind, [*ids, FAKE, GLOBAL, *[IMAGE] * 4, FAKE], torch.stack(tiles))


def by_sample(rows: list[list[Item]]) -> dict[str, Any]:
    """`[B, most tiles of a row, 3, h, w]`, padded with empty tiles."""
    if not any(rows):
        return {}
    tiles = [[tile for item in row for tile in item.pixels] for row in rows]
    most = max(map(len, tiles))
    empty = torch.zeros(3, TILE, TILE)
    return {
        "pixel_values": torch.stack([torch.stack(t + [empty] * (most - len(t))) for t in tiles])
    }


def cohere2_vision() -> Any:
    config = tf.Cohere2VisionConfig(
        text_config=tf.Cohere2Config(**TEXT),
        vision_config=siglip(),
        downsample_factor=2,
        alignment_intermediate_size=64,
        **IDS,
    )
    return tf.Cohere2VisionForConditionalGeneration(config)


def cohere2_item(kind: str, size: tuple[int, int], rng: torch.Generator, count: int) -> Item:
    grid = tile_grid(size, [tuple(p) for p in PINPOINTS], TILE)
    tiles = cut(picture(size, rng), grid)
    tiles = [*tiles[1:], tiles[0]] if size[0] != size[1] else tiles[:1]
    tile = [*[IMAGE] * 4, NEWLINE]
    return Item(kind, [START, *tile * len(tiles), FAKE], torch.stack(tiles))


# -- Gemma ------------------------------------------------------------------------------------


def paligemma() -> Any:
    config = tf.PaliGemmaConfig(
        text_config=tf.GemmaConfig(**TEXT, head_dim=12),
        vision_config=siglip(projection_dim=48),
        projection_dim=48,
        **IDS,
    )
    return tf.PaliGemmaForConditionalGeneration(config)


def gemma3() -> Any:
    text = tf.Gemma3TextConfig(**TEXT, head_dim=12, sliding_window=512)
    config = tf.Gemma3Config(text_config=text, vision_config=siglip(), mm_tokens_per_image=4, **IDS)
    model = tf.Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.2)
    return model


# -- a family without an adapter ----------------------------------------------------------------


def aya_vision() -> Any:
    """SigLIP, a pixel shuffle, tiles as images."""
    config = tf.AyaVisionConfig(
        text_config=tf.Cohere2Config(**TEXT),
        vision_config=siglip(),
        downsample_factor=2,
        vision_feature_layer=-1,
        adapter_layer_norm_eps=1e-6,
        alignment_intermediate_size=64,
        **IDS,
    )
    return tf.AyaVisionForConditionalGeneration(config)
