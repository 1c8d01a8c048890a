"""Architectures of well-known checkpoints, with random weights and, where asked for, fewer layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from vtc.errors import VTCError


@dataclass(frozen=True)
class Depth:
    """Layers of the language model and of the vision tower."""

    language: int
    vision: int


@dataclass(frozen=True)
class Shape:
    """An architecture.

    Attributes:
        depth: as published.
        config: makes the configuration at a depth.
        pictures: makes the image processor, as the published checkpoint sets it.
        placeholders: what stands for one image in the prompt, given configuration and pixel inputs.
        clip: whether the vision tower is half of a CLIP model, so that text-guided methods work.
        period: the tower's layers differ, and repeat after so many.
        least: fewest vision layers.
    """

    depth: Depth
    config: Callable[[Depth], Any]
    pictures: Callable[[], Any]
    placeholders: Callable[[Any, Mapping[str, Any]], list[int]]
    clip: bool = False
    period: int = 1
    least: int = 1

    def reduced(self, language: int | None, vision: int | None) -> Depth:
        """The depth that is asked for, None for the published one.

        Raises:
            VTCError: out of range.
        """
        if language is not None and not 1 <= language <= self.depth.language:
            raise VTCError(f"layers: got {language}, allowed are 1 to {self.depth.language}")
        if vision is not None and (
            not self.least <= vision <= self.depth.vision or vision % self.period
        ):
            of = f"multiples of {self.period} in " if self.period > 1 else ""
            raise VTCError(
                f"vision-layers: got {vision}, allowed are {of}{self.least} to {self.depth.vision}"
            )
        return Depth(language or self.depth.language, vision or self.depth.vision)


def narrowed(wanted: Shape, width: float) -> Shape:
    """A shape whose language model has a share of its width, and heads as wide as before.

    Raises:
        VTCError: the share is none, or leaves no whole number of heads.
    """
    if width == 1:
        return wanted
    text = wanted.config(Depth(1, wanted.least)).get_text_config()
    heads = [width * text.num_attention_heads, width * text.num_key_value_heads]
    if not 0 < width < 1 or any(number != int(number) for number in heads):
        least = Fraction(1, math.gcd(text.num_attention_heads, text.num_key_value_heads))
        raise VTCError(f"width: got {width}, allowed are multiples of {least} up to 1")

    def config(depth: Depth) -> Any:
        made = wanted.config(depth)
        text, vision = made.get_text_config(), made.vision_config
        text.num_attention_heads, text.num_key_value_heads = map(int, heads)
        if getattr(vision, "out_hidden_size", None) == text.hidden_size:
            vision.out_hidden_size = int(width * text.hidden_size)
        text.hidden_size = int(width * text.hidden_size)
        text.intermediate_size = int(width * text.intermediate_size)
        return made

    return replace(wanted, config=config)


def shape(name: str) -> Shape:
    """The shape of a name.

    Raises:
        VTCError: there is none.
    """
    from vtc.registry import entry

    return entry(SHAPES, "shape", name)


def build(config: Any, device: Any, dtype: Any) -> Any:
    """A model of a configuration with random weights, in eval mode."""
    import torch
    from transformers import AutoModelForImageTextToText

    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    return model.eval()


# -- LLaVA ------------------------------------------------------------------------------------

_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
_LLAVA_DEPTH = Depth(32, 24)


def _llava_parts(depth: Depth) -> dict[str, Any]:
    """Vicuna-7B and CLIP ViT-L/14 at 336 px."""
    from transformers import CLIPVisionConfig, LlamaConfig

    text = LlamaConfig(
        vocab_size=32064,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=depth.language,
        num_attention_heads=32,
        num_key_value_heads=32,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        pad_token_id=0,
    )
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=depth.vision,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    return dict(text_config=text, vision_config=vision, image_token_index=32000)


def _llava(depth: Depth) -> Any:
    from transformers import LlavaConfig

    return LlavaConfig(**_llava_parts(depth))


def _llava_next(depth: Depth) -> Any:
    from transformers import LlavaNextConfig

    return LlavaNextConfig(**_llava_parts(depth), image_grid_pinpoints=_PINPOINTS)


_CLIP_PIXELS: dict[str, Any] = dict(
    size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
)


def _clip_pictures() -> Any:
    from transformers import CLIPImageProcessorPil

    return CLIPImageProcessorPil(**_CLIP_PIXELS)


def _next_pictures() -> Any:
    from transformers import LlavaNextImageProcessorPil

    return LlavaNextImageProcessorPil(**_CLIP_PIXELS, image_grid_pinpoints=_PINPOINTS)


def _one_tile(config: Any, inputs: Mapping[str, Any]) -> list[int]:
    vision = config.vision_config
    return [config.image_token_id] * (vision.image_size // vision.patch_size) ** 2


def _anyres(config: Any, inputs: Mapping[str, Any]) -> list[int]:
    vision = config.vision_config
    height, width = inputs["image_sizes"][0].tolist()
    pinpoints = [(rows, cols) for rows, cols in config.image_grid_pinpoints]
    from vtc.functional.anyres import tile_grid
    from vtc.packing import Packing

    crops = tile_grid((height, width), pinpoints, vision.image_size)
    side = vision.image_size // vision.patch_size
    packing = Packing((side, side), crops, (height, width), newline=True)
    return [config.image_token_id] * packing.length


# -- Qwen2.5-VL -------------------------------------------------------------------------------


def _qwen2_5_vl(depth: Depth) -> Any:
    from transformers import Qwen2_5_VLConfig

    text = dict(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=depth.language,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=128000,
        rms_norm_eps=1e-6,
        rope_parameters={
            "rope_type": "default",
            "mrope_section": [16, 24, 24],
            "rope_theta": 1000000.0,
        },
    )
    vision = dict(
        depth=depth.vision,
        hidden_size=1280,
        intermediate_size=3420,
        num_heads=16,
        out_hidden_size=3584,
        window_size=112,
        fullatt_block_indexes=list(range(7, depth.vision, 8)),
    )
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, image_token_id=151655)


def _qwen_pictures() -> Any:
    from transformers import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil()


def _qwen_ids(config: Any, inputs: Mapping[str, Any]) -> list[int]:
    merge = config.vision_config.spatial_merge_size
    tokens = int(inputs["image_grid_thw"].prod()) // merge**2
    return [config.vision_start_token_id, *[config.image_token_id] * tokens]


# -- InternVL3 --------------------------------------------------------------------------------


def _internvl(depth: Depth) -> Any:
    """Qwen2.5-7B and InternViT-300M at 448 px."""
    from transformers import InternVLConfig, InternVLVisionConfig, Qwen2Config

    text = Qwen2Config(
        vocab_size=151674,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=depth.language,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
    )
    vision = InternVLVisionConfig(
        num_hidden_layers=depth.vision, attention_bias=True, image_size=[448, 448]
    )
    return InternVLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=151667,
        tie_word_embeddings=False,
    )


def _internvl_pictures() -> Any:
    from transformers import GotOcr2ImageProcessorPil

    return GotOcr2ImageProcessorPil(
        crop_to_patches=True,
        min_patches=1,
        max_patches=12,
        size={"height": 448, "width": 448},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )


def _internvl_ids(config: Any, inputs: Mapping[str, Any]) -> list[int]:
    return [config.image_token_id] * (config.image_seq_length * len(inputs["pixel_values"]))


SHAPES = {
    "llava-1.5-7b": Shape(_LLAVA_DEPTH, _llava, _clip_pictures, _one_tile, clip=True, least=2),
    "llava-next-7b": Shape(_LLAVA_DEPTH, _llava_next, _next_pictures, _anyres, clip=True, least=2),
    "qwen2.5-vl-7b": Shape(
        Depth(28, 32), _qwen2_5_vl, _qwen_pictures, _qwen_ids, period=8, least=8
    ),
    "internvl3-8b": Shape(Depth(28, 24), _internvl, _internvl_pictures, _internvl_ids),
}
