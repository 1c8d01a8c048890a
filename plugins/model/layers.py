"""Layers of a vision tower, by number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from vtc.errors import VTCError


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


#: what configurations and calls name the layers that features are read from; the second is VipLLaVA's
#: in older versions
_NAMES = ("vision_feature_layer", "vision_feature_layers")


def feature_layer(
    config: Any, arguments: Mapping[str, Any] = MappingProxyType({})
) -> tuple[str, int | Sequence[int]] | None:
    """Which layers the features are read from, and the name that the model has for that.

    Args:
        config: of the model.
        arguments: of a call, which go before it.

    Returns:
        None where nothing says it: features are the last layer's.
    """
    found = [(name, arguments.get(name)) for name in _NAMES]
    found += [(name, getattr(config, name, None)) for name in _NAMES]
    return next(((name, layer) for name, layer in found if layer is not None), None)


def layer_of_features(config: Any, depth: int) -> int:
    """The encoder layer whose output the features are, of several the deepest; by the model's config."""
    found = feature_layer(config)
    read = [depth] if found is None else layers_read(found[1], depth)
    return max(*read, 1) - 1
