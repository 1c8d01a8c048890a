"""Layers of a vision tower, by number."""

from __future__ import annotations

from collections.abc import Sequence
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


def layer_of_features(config: Any, depth: int) -> int:
    """The encoder layer whose output the features are, of several the deepest; by the model's config."""
    feature = getattr(config, "vision_feature_layer", None)
    if feature is None:  # VipLLaVA's name for it in older versions
        feature = getattr(config, "vision_feature_layers", None)
    read = [depth] if feature is None else layers_read(feature, depth)
    return max(*read, 1) - 1
