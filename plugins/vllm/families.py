"""The families that are served: where vLLM has them, how their images are cut, what their towers tell.

Everything here follows from a configuration and from what a processor made; nothing imports vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vtc.errors import VTCError
from vtc.methods.base import Method
from vtc.methods.which import quoted, without_signals
from vtc.plugins.model import families
from vtc.plugins.model.inputs import Inputs
from vtc.plugins.model.layers import layer_index, layer_of_features
from vtc.plugins.model.signals import ATTENTION, HIDDEN, POOLED, WORDS
from vtc.plugins.model.units import Unit, uncut
from vtc.plugins.vllm.settings import Wish
from vtc.tokens import SignalRequest

#: architecture -> module of vLLM and class in it
ARCHITECTURES: Mapping[str, tuple[str, str]] = {
    "LlavaForConditionalGeneration": ("llava", "LlavaForConditionalGeneration"),
    "LlavaNextForConditionalGeneration": ("llava_next", "LlavaNextForConditionalGeneration"),
    "LlavaOnevisionForConditionalGeneration": (
        "llava_onevision",
        "LlavaOnevisionForConditionalGeneration",
    ),
    "Qwen2VLForConditionalGeneration": ("qwen2_vl", "Qwen2VLForConditionalGeneration"),
    "Qwen2_5_VLForConditionalGeneration": ("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration"),
    "Qwen3VLForConditionalGeneration": ("qwen3_vl", "Qwen3VLForConditionalGeneration"),
    "InternVLForConditionalGeneration": ("interns1", "InternS1ForConditionalGeneration"),
    "Idefics3ForConditionalGeneration": ("idefics3", "Idefics3ForConditionalGeneration"),
    "SmolVLMForConditionalGeneration": ("smolvlm", "SmolVLMForConditionalGeneration"),
    "Gemma3ForConditionalGeneration": ("gemma3_mm", "Gemma3ForConditionalGeneration"),
}
#: `model_type` of those with rotary positions on three axes
MROPE = frozenset({"qwen2_vl", "qwen2_5_vl", "qwen3_vl"})
#: those whose prompt has tags between the tiles of an image
TAGGED = frozenset({"idefics3"})
#: those whose towers vLLM builds up to the layer that is read
_CUT_SHORT = frozenset({"llava", "llava_next", "llava_onevision"})
_WITH_CLS = frozenset({"clip_vision_model", "internvl_vision"})


def units(
    config: Any, data: Mapping[str, Any], grids: Sequence[tuple[int, int]] | None = None
) -> list[Unit]:
    """The images of what a processor made.

    Args:
        config: of the model.
        data: the processor's outputs as vLLM holds them, without ids.
        grids: `(rows, cols)` of the crops of each image where `data` does not tell, (0, 0) for none.

    """
    kind, values = config.model_type, dict(data)
    pixels = values["pixel_values"]
    if kind in TAGGED:
        grid = (families.grid_side(config) // config.scale_factor,) * 2
        assert grids is not None, "the processor's own count"
        return [
            Unit(uncut(grid, g if all(g) else None, order="thumbnail_last"), fused=True)
            for g in grids
        ]
    if isinstance(pixels, (list, tuple)):
        values["pixel_values"] = _joined(pixels)
    if kind == "llava_onevision":  # vLLM crops all images and knows one limit
        values["vision_aspect_ratio"] = "anyres_max_9"
    placeholder = torch.zeros(1, 0, dtype=torch.bool)
    if kind == "internvl":
        vision = config.vision_config
        tokens = int((vision.image_size[0] // vision.patch_size[0] * config.downsample_ratio) ** 2)
        runs = [[True] * (int(n) * tokens) + [False] for n in values["image_num_patches"]]
        placeholder = torch.tensor([sum(runs, [])])
    return families.FAMILIES[kind](Inputs(config, "image", values, None, placeholder))


def _joined(pixels: Sequence[Tensor]) -> Tensor:
    """Pixels of images one by one, as one tensor where they are alike; the first where they are not,
    since then sizes are told elsewhere."""
    if len(pixels) == 1:  # a request's one image is not copied
        return pixels[0][None]
    alike = len({each.shape for each in pixels}) == 1
    return torch.stack(list(pixels)) if alike else pixels[0]


@dataclass(frozen=True)
class Tower:
    """A vision tower as vLLM runs it.

    Attributes:
        has_cls: whether a CLS token stands in front of the patches.
        depth: layers of the checkpoint.
        built: layers that vLLM builds; of the one behind them queries and keys can be had as well.
        read: the layer whose output the features are.
        windows: whether attention may go window by window.
        blind: why nothing can be read of it, empty where it can.
    """

    has_cls: bool
    depth: int
    built: int
    read: int
    windows: bool
    blind: str = ""


def tower_of(config: Any, blind: str = "") -> Tower:
    """The tower of a model, by its configuration.

    Args:
        config: of the model.
        blind: why nothing can be read of it.
    """
    vision, kind = config.vision_config, config.model_type
    depth = getattr(vision, "num_hidden_layers", None) or vision.depth
    has_cls = vision.model_type in _WITH_CLS
    read = layer_of_features(config, depth) if kind in _CUT_SHORT else depth - 1
    built = read + 1 if kind in _CUT_SHORT else depth
    return Tower(has_cls, depth, built, read, kind in MROPE, blind)


def check(wish: Wish, config: Any, tower: Tower) -> None:
    """Raise `VTCError` where a model is not pruned, or its tower cannot give what the method reads."""
    if wish.method == "none":
        return
    why = _unserved(config)
    if why:
        raise VTCError(f"model: {why}; it is served without pruning")
    placed(wish.create(), tower)


def _unserved(config: Any) -> str:
    """Why images of a model are not pruned, empty where they are."""
    kind, vision = config.model_type, config.vision_config
    if kind == "llava" and vision.model_type == "pixtral":
        return "Pixtral has a token behind every row of patches, which no method may move"
    if kind == "smolvlm":
        return (
            "SmolVLM could not be compared: transformers before 5.23 takes whole tiles of it only"
        )
    if kind == "gemma3":
        return (
            "vLLM's own attention over Gemma 3's image tokens is not transformers', so nothing could be "
            "proven"
        )
    full = getattr(config, "vision_feature_select_strategy", None) == "full"
    if full and vision.model_type in _WITH_CLS:
        return (
            "vision_feature_select_strategy='full' hands the CLS token to the language model as if it "
            "were a patch"
        )
    return ""


def placed(method: Method, tower: Tower) -> dict[str, SignalRequest]:
    """The signals that a method reads, each with the number of its layer.

    Raises:
        VTCError: vLLM's tower does not give one of them.
    """
    out = {}
    requests = method.requests(tower.has_cls)
    if tower.blind and (
        method.stage == "vision" or {request.kind for request in requests.values()} - WORDS
    ):
        raise VTCError(
            f"vtc_method: {method.name!r} reads the vision tower, and {tower.blind}; "
            f"{quoted(without_signals())} work without"
        )
    for name, request in requests.items():
        if request.kind in HIDDEN | POOLED | {"pixels"}:
            raise VTCError(
                f"vtc_method: {method.name!r} reads {request.kind}, which is not kept while vLLM "
                f"runs its tower; {quoted(without_signals())} work without"
            )
        layer = 0
        if request.kind in ATTENTION:
            at = tower.read if isinstance(request.layer, str) else request.layer
            layer = layer_index(at, tower.depth)
            if layer > min(tower.built, tower.depth - 1):
                raise VTCError(
                    f"vtc_options: {method.name!r} reads layer {layer} of the vision tower, of whose "
                    f"{tower.depth} layers vLLM builds {tower.built}; allowed are layers up to "
                    f"{min(tower.built, tower.depth - 1)}"
                )
        out[name] = replace(request, layer=layer)
    return out
