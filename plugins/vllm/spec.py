"""`Spec`: what the front end promises of one image, and the worker keeps.

It travels with the image's pixels as JSON in bytes. The worker needs nothing else: no setting, no
environment, no look at the prompt.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vtc.errors import VTCError
from vtc.functional.budget import apportion
from vtc.methods.base import Method
from vtc.packing import Packing
from vtc.plugins.model.units import Unit
from vtc.plugins.vllm.settings import Limits, Wish
from vtc.registry import create_method

#: of the JSON; `format`, `length` and `packing` stay where they are in every one of them
FORMAT = 1
#: stands for a method that cannot be read
UNREADABLE = ""


@dataclass(frozen=True)
class Spec:
    """One image: what is done to it and how many tokens come out.

    Attributes:
        method, options: the method, and its fields without a budget as JSON.
        tokens: patch tokens to keep.
        length: rows that come out, separators counted; so many placeholders the prompt has.
        packing, fused: as in `Unit`.
        shares: where tags stand between tiles, patch tokens of each tile, thumbnail first; a share
            cannot follow what the tiles show, since the prompt is written before they are seen.
        question: ids of what guides the method, None where nothing does.
    """

    method: str
    options: str
    tokens: int
    length: int
    packing: Packing
    fused: bool = False
    shares: tuple[int, ...] = ()
    question: tuple[int, ...] | None = None

    @property
    def full(self) -> int:
        """Tokens of the image when nothing is pruned."""
        return self.packing.length

    @property
    def unit(self) -> Unit:
        """The image's geometry."""
        return Unit(self.packing, self.fused)

    @property
    def key(self) -> tuple[str, str]:
        """What images of one method have in common."""
        return self.method, self.options

    def create(self) -> Method:
        """The method without a budget, made once for equal specs and never changed.

        Raises:
            VTCError: another version of the plug-in wrote the spec.
        """
        if self.method == UNREADABLE:
            raise VTCError(
                f"vtc_spec: got another format than {FORMAT}; the same vtc must be installed on "
                "every node"
            )
        return _created(self.method, self.options)

    @property
    def whole(self) -> bool:
        """Whether every token of the image stays.

        Raises:
            VTCError: as `create`.
        """
        return replace(self.create(), retention=None, tokens=self.tokens).is_identity(self.packing)

    def pieces(self) -> list[tuple[int, int, Packing]]:
        """`(first tile, tokens, packing)` of what is compressed by itself: the image, or its tiles in
        the order in which they are packed."""
        if not self.shares:
            return [(0, self.tokens, self.packing)]
        tile = Packing(self.packing.patch_grid)
        order = [*range(1, len(self.shares)), 0]
        return [(nth, self.shares[nth], tile) for nth in order if self.shares[nth]]

    def runs(self) -> list[int] | None:
        """Rows of each tile in the order in which they are packed; None where no tag stands between."""
        return (
            [self.shares[nth] for nth in [*range(1, len(self.shares)), 0]] if self.shares else None
        )

    # -- on its way --------------------------------------------------------------------------------

    def to_tensor(self) -> Tensor:
        """The spec as uint8 `[bytes]`."""
        packing = self.packing.to_dict()
        data = {
            "format": FORMAT,
            "method": self.method,
            "options": self.options,
            "tokens": self.tokens,
            "length": self.length,
            "packing": packing,
            "fused": self.fused,
            "shares": list(self.shares),
            "question": None if self.question is None else list(self.question),
        }
        text = json.dumps(data, sort_keys=True, separators=(",", ":"))
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).clone()

    @classmethod
    def from_tensor(cls, data: Tensor) -> Spec:
        """The inverse of `to_tensor`; what is not filled with bytes (0) at its end is left out.

        Of what another version of the plug-in wrote, the number of rows alone is read: without it the
        engine could not go on.
        """
        return _parsed(bytes(data.tolist()).rstrip(b"\0"))


@functools.lru_cache(maxsize=4096)
def _parsed(text: bytes) -> Spec:
    data = json.loads(text)
    if data["format"] != FORMAT:
        length = data["length"]
        return Spec(UNREADABLE, "{}", length, length, Packing.from_dict(data["packing"]))
    question = data["question"]
    return Spec(
        data["method"],
        data["options"],
        data["tokens"],
        data["length"],
        Packing.from_dict(data["packing"]),
        data["fused"],
        tuple(data["shares"]),
        None if question is None else tuple(question),
    )


#: methods that keep the same share of every tile, read no signals and draw nothing
BY_TILE = ("uniform",)


@functools.lru_cache(maxsize=256)
def _created(name: str, options: str) -> Method:
    return create_method(name, **json.loads(options))


def make(
    wish: Wish,
    unit: Unit,
    limits: Limits,
    tagged: bool = False,
    question: tuple[int, ...] | None = None,
) -> Spec:
    """What a wish means for one image.

    Args:
        wish: of the request.
        unit: the image.
        limits: of the operator.
        tagged: whether tags stand between its tiles.
        question: ids of what guides the method.

    Raises:
        VTCError: the number of tokens does not follow from the image's shape, or is not allowed.
    """
    method, packing = wish.create(), unit.packing
    budget = method.budget(packing)
    limits.check(budget, packing.patches)
    exact = replace(method, retention=None, tokens=budget)
    shares: tuple[int, ...] = ()
    if tagged and packing.tiles > 1 and not exact.is_identity(packing):
        if wish.method not in BY_TILE:
            raise VTCError(
                f"vtc_method: {wish.method!r} shares tokens among the tiles of an image by what they "
                "show, but this family's prompt has tags between tiles, written before an image is "
                f"seen; allowed here are {', '.join(BY_TILE)}"
            )
        available = torch.tensor(packing.geometry.available)
        shares = tuple(apportion(available[None], available[None], [budget])[0].tolist())
    # a tile by itself has no separators
    length = sum(shares) if shares else exact.length(packing)
    if length is None:
        raise VTCError(
            f"vtc_method: {method.name!r} with these options keeps a number of tokens that hangs on "
            "what an image shows, which is known too late for a server"
        )
    return Spec(wish.method, wish.options, budget, length, packing, unit.fused, shares, question)


def cut(ids: Sequence[int], embed: Sequence[bool], spec: Spec) -> list[int]:
    """The ids that stand for an image in a prompt, with as many placeholders as rows come out.

    Args:
        ids: of the image without pruning: placeholders, and tags that stay.
        embed: which of them are placeholders.

    Raises:
        VTCError: vLLM counts the image's tokens otherwise.
    """
    count = sum(embed)
    if count != spec.full:
        raise VTCError(
            f"image: vLLM gives it {count} tokens, vtc counts {spec.full} in {spec.packing}; "
            "please report it, and use vtc_method='none' for such an image"
        )
    left = spec.runs() or [spec.length]
    if len(left) == 1 and count == len(ids):  # nothing but placeholders
        return list(ids[: spec.length]) + [ids[-1]] * (spec.length - count)
    tile = spec.full // len(left)
    out, seen = [], 0
    for token, is_placeholder in zip(ids, embed, strict=True):
        if not is_placeholder:
            out.append(token)
            continue
        nth, place = divmod(seen, tile)
        seen += 1
        if place < left[nth]:
            out.append(token)
        if place == tile - 1:  # GlobalCom2 has newlines for rows of padding
            out += [token] * (left[nth] - tile)
    return out


def spaced(count: int, spec: Spec) -> Tensor:
    """Int64 `[length]`: rows of the packed image at even distances, of each tile where tags stand
    between them; what stands in where a method fails.

    Args:
        count: rows that there are.
    """
    left = spec.runs() or [spec.length]
    tile = count // len(left)
    places = [
        start * tile + torch.div((2 * torch.arange(n) + 1) * tile, 2 * n, rounding_mode="floor")
        for start, n in enumerate(left)
        if n
    ]
    return torch.cat(places)
