"""What the plug-in must know of a model family, and the look-up by class.

An adapter is mostly data. It never decides what is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from vtc.errors import VTCError

_ADAPTERS: dict[str, type[Adapter]] = {}
A = TypeVar("A", bound="type[Adapter]")


@dataclass(frozen=True)
class Unit:
    """One image of a call: which tiles of the vision batch are its own, and their geometry.

    Attributes:
        tiles: slice of the tower's batch.
        tile_grid: `(rows, cols)` of the crops, None for a single tile.
        image_size: original `(height, width)` in pixels, None when the model does not know it.
    """

    tiles: slice
    tile_grid: tuple[int, int] | None = None
    image_size: tuple[int, int] | None = None


class Adapter:
    """A model family. `base` is always the inner model, the one with `get_image_features`."""

    #: names of the pixel inputs that make a call a prefill with images
    pixel_keys: ClassVar[tuple[str, ...]] = ("pixel_values",)
    #: how padding is cut from the canvas, see `vtc.functional.anyres.valid_region`
    unpad: ClassVar[str] = "none"
    #: whether `forward` concatenates a list of images or wants one tensor
    wants_list: ClassVar[bool] = True

    def tower(self, base: nn.Module) -> nn.Module:
        """The vision tower."""
        return base.vision_tower

    def projector(self, base: nn.Module) -> nn.Module:
        """The module that maps vision features to the language model's width."""
        return base.multi_modal_projector

    def encoder(self, base: nn.Module) -> nn.Module:
        """The part of the vision tower that holds the layers."""
        tower = self.tower(base)
        part = getattr(tower, "vision_model", tower)
        if not hasattr(part, "encoder"):
            raise VTCError(
                f"model: its vision tower is a {type(tower).__name__}, allowed are CLIP and SigLIP"
            )
        return part.encoder

    def layers(self, base: nn.Module) -> nn.ModuleList:
        """The encoder layers of the vision tower."""
        return self.encoder(base).layers

    def attention(self, base: nn.Module, layer: int) -> nn.Module:
        """The attention module of encoder layer `layer`."""
        return self.layers(base)[layer].self_attn

    def has_cls(self, base: nn.Module) -> bool:
        """Whether the tower puts a CLS token in front of the patches."""
        names = (name.rsplit(".", 1)[-1] for name, _ in self.tower(base).named_parameters())
        return any(name in ("class_embedding", "cls_token") for name in names)

    def image_token_id(self, config: Any) -> int:
        """The id of the placeholder."""
        return config.image_token_id

    def newline(self, base: nn.Module) -> Tensor | None:
        """The separator embedding, None when the family has none."""
        return None

    def patch_grid(self, base: nn.Module, patches: int) -> tuple[int, int]:
        """`(rows, cols)` of a tile with `patches` patches."""
        side = math.isqrt(patches)
        if side * side != patches:
            raise VTCError(f"pixel_values: a tile gives {patches} patches, not a square grid")
        return side, side

    def units(self, base: nn.Module, kwargs: dict[str, Any], tiles: int) -> list[Unit]:
        """The images of the call, in the order of their placeholders.

        Args:
            kwargs: the call's arguments.
            tiles: how many tiles the vision tower saw.
        """
        return [Unit(slice(i, i + 1)) for i in range(tiles)]

    def check(self, base: nn.Module) -> None:
        """Raise `VTCError` when this checkpoint's configuration cannot be compressed."""
        config = base.config
        if getattr(config, "vision_feature_select_strategy", None) == "full" and self.has_cls(base):
            raise VTCError(
                "vision_feature_select_strategy: got 'full', which hands the CLS token to the language "
                "model as if it were a patch; allowed here is 'default'"
            )

    def pixels(self, kwargs: dict[str, Any], unit: Unit, index: int) -> Tensor:
        """The pixels of image `index`, without tiles that only pad the batch."""
        values = kwargs["pixel_values"]
        if values.dim() == 5:
            return values[index, : unit.tiles.stop - unit.tiles.start]
        return values[unit.tiles]


def register_adapter(*class_names: str) -> Callable[[A], A]:
    """Class decorator: use the adapter for these transformers classes and their subclasses."""

    def decorate(cls: A) -> A:
        for name in class_names:
            _ADAPTERS[name] = cls
        return cls

    return decorate


def supported_classes() -> list[str]:
    """Names of the model classes that have an adapter."""
    return sorted(_ADAPTERS)


def adapter_for(model: nn.Module) -> Adapter:
    """The adapter of a model, looked up along its class's bases.

    Raises:
        VTCError: no adapter knows the class.
    """
    for cls in type(model).__mro__:
        if cls.__name__ in _ADAPTERS:
            return _ADAPTERS[cls.__name__]()
    raise VTCError(
        f"model: {type(model).__name__} is not supported, supported are "
        f"{', '.join(supported_classes())}"
    )


def layer_index(layer: int | float, depth: int) -> int:
    """Encoder layer `layer` as an index in `range(depth)`; a float is a fraction of the depth.

    Raises:
        VTCError: the tower has no such layer.
    """
    if isinstance(layer, float) and 0 < layer < 1:
        return min(max(round(layer * depth) - 1, 0), depth - 1)
    index = int(layer) + depth if layer < 0 else int(layer)
    if index != (layer + depth if layer < 0 else layer) or not 0 <= index < depth:
        raise VTCError(
            f"layer: got {layer}, allowed are {-depth} to {depth - 1} or a fraction in (0, 1)"
        )
    return index


def layers_read(feature_layer: int | Sequence[int], depth: int) -> list[int]:
    """The hidden states that make the features, counted from the front.

    `hidden_states[i]` is the input of encoder layer i, so it needs i layers to run.
    """
    wanted = [feature_layer] if isinstance(feature_layer, int) else list(feature_layer)
    return [i if i >= 0 else depth + 1 + i for i in wanted]
