"""What tokenizer and generator presets share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from vtc.errors import VTCError
from vtc.registry import register

Options = dict[str, Any]
F = TypeVar("F", bound="Callable[..., Any]")


#: The layers of BERT and of vision transformers.
PLAIN: Options = {
    "ffn": "gelu",
    "norm": "layer",
    "qkv_bias": True,
    "out_bias": True,
    "ffn_bias": True,
}


def preset(table: dict[str, Any]) -> Callable[[F], F]:
    """Decorator: a preset under the name of its function."""
    return lambda build: register(table, build.__name__)(build)


def split_decomposition(name: str) -> tuple[int, int]:
    """`"K-d"`: K sub-codes of d bits."""
    parts, _, width = name.partition("-")
    if not (parts.isdigit() and width.isdigit() and int(parts) and int(width)):
        raise VTCError(f"decomposition: got {name!r}, write sub-codes and bits, for example '2-10'")
    return int(parts), int(width)


def head_dim(dim: int, heads: int, axes: int) -> int:
    """Width of a head, with at least one rotary pair for every axis."""
    step = 2 * heads
    if dim % step or dim < axes * step:
        raise VTCError(f"dim: got {dim}, allowed are multiples of {step} from {axes * step} on")
    return dim // heads


def two_axes(dim: int, heads: int) -> tuple[int, int]:
    """Row and column share the rotary pairs of a head."""
    head = head_dim(dim, heads, 2)
    return head - head // 4 * 2, head // 4 * 2


def three_axes(dim: int, heads: int) -> tuple[int, int, int]:
    """Index, row and column: Instella's (8, 28, 28) of 64, in proportion."""
    head = head_dim(dim, heads, 3)
    side = head * 7 // 32 * 2
    return head - 2 * side, side, side
