"""What a method leaves of the images of a call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from vtc.methods.base import Method
from vtc.packing import Packing
from vtc.tokens import CompressedTokens, VisualTokens, nothing_of


@dataclass
class Cut:
    """The images of a call, and what a method left of each.

    Attributes:
        tokens: as the method saw them.
        outs: what it left; anchors count all tokens of an image, hidden ones too.
        changed: the images that it had a say in.
    """

    tokens: list[VisualTokens]
    outs: list[CompressedTokens]
    changed: list[int]

    @property
    def anchors(self) -> list[Tensor]:
        """Int64 of each image: the tokens that are left, in their order."""
        return [out.anchor for out in self.outs]


def seen_alone(packing: Packing, seen: Tensor) -> Packing:
    """An image of whose tokens only those `seen` are not hidden by the prompt's mask."""
    gone = set(range(len(packing.layout))) - set(seen.tolist())
    return replace(packing, hidden=tuple(sorted(gone)))


def compress_seen(
    method: Method, tokens: list[VisualTokens], numbers: Sequence[int], count: int
) -> list[CompressedTokens]:
    """The method's outcome for every image; nothing of one that is hidden whole."""
    seen = [i for i, image in enumerate(tokens) if len(image.layout)]
    if len(seen) == len(tokens):
        return method.compress_all(tokens, count=count, numbers=numbers)
    some = method.compress_all(
        [tokens[i] for i in seen], count=count, numbers=[numbers[i] for i in seen]
    )
    outs = [nothing_of(image) for image in tokens]
    for index, out in zip(seen, some, strict=True):
        outs[index] = out
    return outs


def counted_whole(outs: list[CompressedTokens], left: dict[int, Tensor]) -> None:
    """Anchors that count all tokens of an image, in place: the method's own do not count hidden ones."""
    for index, shown in left.items():
        anchor = outs[index].anchor
        outs[index] = outs[index].replace(anchor=shown.to(anchor.device)[anchor])
