"""Floating-point operations: counted as they run, and by closed formulas to check the count.

Both count two operations for a multiply and add, matrix products, convolutions and attention, and
nothing else: norms, activations and softmax are left out, as is usual. Attention counts all pairs
of tokens, causal or not, as PyTorch's counter does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def counter() -> FlopCounterMode:
    """PyTorch's counter, with the attention kernel that CPUs run.

    `FlopCounterMode` knows no formula for it, so that on a CPU the attention of SDPA would count
    nothing.
    """

    def attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
        return sdpa_flop_count(query, key, value)

    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={kernel: attention})


def language_flops(config: Any, lengths: Sequence[int]) -> int | None:
    """FLOPs of a language model's run over a prompt, head at the last place only.

    Args:
        config: of the language model; decoders with grouped-query attention and a gated MLP.
        lengths: tokens that enter each layer.

    Returns:
        None for another kind of model.
    """
    if config.model_type not in ("llama", "mistral", "qwen2", "qwen2_vl_text", "qwen2_5_vl_text"):
        return None
    width, heads = config.hidden_size, config.num_attention_heads
    each = getattr(config, "head_dim", None) or width // heads
    kv = config.num_key_value_heads
    projections = 2 * width * each * (2 * heads + 2 * kv)
    mlp = 2 * 3 * width * config.intermediate_size
    layers = sum(n * (projections + mlp + 4 * n * heads * each) for n in lengths)
    return layers + 2 * width * config.vocab_size


def encoder_flops(config: Any, inputs: Mapping[str, Any], layers: int) -> int | None:
    """FLOPs of vision tower and projector.

    Args:
        config: of the whole model.
        inputs: of its call.
        layers: encoder layers that run.

    Returns:
        None for a family whose formula is not here.
    """
    formulas = {
        "llava": _clip,
        "llava_next": _clip,
        "internvl": _internvl,
        "qwen2_5_vl": _qwen2_5_vl,
    }
    formula = formulas.get(config.model_type)
    return None if formula is None else formula(config, inputs, layers)


#: towers that a LLaVA may have with a CLS token
WITH_CLS = {"clip_vision_model", "dinov2"}


def _vit(vision: Any, tiles: int, patches: int, cls: int, layers: int) -> int:
    """Tiles of one size, each attending to itself."""
    width, seen = vision.hidden_size, patches + cls
    patch = vision.patch_size[0] if isinstance(vision.patch_size, tuple) else vision.patch_size
    embedding = 2 * patches * width * 3 * patch**2
    linear = 2 * seen * (4 * width**2 + 2 * width * _inner(vision))
    return tiles * (embedding + layers * (linear + 4 * seen**2 * width))


def _inner(vision: Any) -> int:
    """Width within a layer's MLP: DINOv2's configuration says how many times the layer's it is."""
    if hasattr(vision, "mlp_ratio"):
        return int(vision.hidden_size * vision.mlp_ratio)
    return vision.intermediate_size


def _clip(config: Any, inputs: Mapping[str, Any], layers: int) -> int | None:
    vision, text = config.vision_config, config.text_config.hidden_size
    tiles = inputs["pixel_values"].shape[:-3].numel()
    patches = (vision.image_size // vision.patch_size) ** 2
    if getattr(vision, "use_swiglu_ffn", False):
        return None  # a giant DINOv2, whose MLP is another
    cls = int(vision.model_type in WITH_CLS)
    projector = 2 * tiles * patches * (vision.hidden_size * text + text**2)
    return _vit(vision, tiles, patches, cls, layers) + projector


def _internvl(config: Any, inputs: Mapping[str, Any], layers: int) -> int:
    vision, text = config.vision_config, config.text_config.hidden_size
    tiles = len(inputs["pixel_values"])
    patches = (vision.image_size[0] // vision.patch_size[0]) ** 2
    fused = round(1 / config.downsample_ratio) ** 2
    projector = 2 * tiles * (patches // fused) * (fused * vision.hidden_size * text + text**2)
    return _vit(vision, tiles, patches, 1, layers) + projector


def _qwen2_5_vl(config: Any, inputs: Mapping[str, Any], layers: int) -> int:
    """One image; most layers attend within windows."""
    vision, width = config.vision_config, config.vision_config.hidden_size
    _, rows, cols = inputs["image_grid_thw"][0].tolist()
    patches, fused = rows * cols, vision.spatial_merge_size**2
    window = vision.window_size // vision.patch_size
    pairs = {
        True: patches**2,
        False: _window_squares(rows, window) * _window_squares(cols, window),
    }
    per_patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    total = 2 * patches * width * per_patch
    for layer in range(layers):
        total += 2 * patches * (4 * width**2 + 3 * width * vision.intermediate_size)
        total += 4 * width * pairs[layer in vision.fullatt_block_indexes]
    inner = fused * width
    return total + 2 * (patches // fused) * (inner**2 + inner * vision.out_hidden_size)


def _window_squares(length: int, window: int) -> int:
    """Sum of the squared lengths of the windows that tile `length`."""
    whole, rest = divmod(length, window)
    return whole * window**2 + rest**2
