"""Which cuts a prompt has, and how much each of them leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vtc.errors import VTCError
from vtc.plugins.hf.stages.layers.shown import Shown

if TYPE_CHECKING:
    from vtc.methods.layer_method import LayerMethod


def cuts_of(method: LayerMethod, depth: int) -> tuple[int, ...]:
    """The layers that have a cut in front of them.

    Raises:
        VTCError: they are none of the model's, or not in order.
    """
    cuts = tuple(int(layer) for layer in method.cuts(depth))
    if not cuts or cuts[0] < 1 or cuts[-1] >= depth or sorted(set(cuts)) != list(cuts):
        raise VTCError(
            f"layers: method {method.name!r} cuts in front of {', '.join(map(str, cuts)) or 'none'}, "
            f"allowed are rising numbers from 1 to {depth - 1}; tokens that layer 0 shall not see are "
            "for a method in front of the language model"
        )
    return cuts


def budgets_of(method: LayerMethod, shown: Shown, depth: int) -> dict[int, list[int]]:
    """Layer -> the tokens that the cut in front of it leaves of each image; cuts that drop none are
    left out.

    Raises:
        VTCError: the method's budget does not fit.
    """
    cuts = cuts_of(method, depth)
    now = [image.tokens for image in shown.images]
    every = []
    for number, tokens in enumerate(now):
        mine: Any = method.for_image(number, len(now))
        counts = mine.counts(tokens, depth)
        if len(counts) != len(cuts) or any(not 0 <= count <= tokens for count in counts):
            raise VTCError(
                f"method {method.name!r} has the counts {counts} of an image of {tokens} tokens, "
                f"expected one for each of {len(cuts)} cuts, from 0 to {tokens}"
            )
        every.append(counts)
    out = {}
    for index, layer in enumerate(cuts):
        left = [min(counts[index], had) for counts, had in zip(every, now, strict=True)]
        if left != now:
            out[layer] = left
        now = left
    return out
