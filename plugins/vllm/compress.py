"""From the rows of a call's images to the rows that are promised, whatever a method does.

Nothing here imports vLLM: a `View` says what is known of a model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vtc.errors import VTCError
from vtc.plugins.model.fingerprint import content_seeds
from vtc.plugins.model.fusing import fused
from vtc.plugins.model.signals import ATTENTION, WORDS, joined, of_attention, of_words
from vtc.plugins.model.units import Place, Unit
from vtc.plugins.vllm.capture import Record
from vtc.plugins.vllm.families import Tower, placed
from vtc.plugins.vllm.spec import Spec, spaced
from vtc.tokens import CompressedTokens, SignalRequest, VisualTokens

logger = logging.getLogger("vllm.vtc")


@dataclass(frozen=True)
class View:
    """What is known of a model.

    Attributes:
        config: its configuration.
        tower: its vision tower.
        width: of the language model; rows may have features for deeper layers behind it.
        newline: the embedding of a separator, if there is one.
        project: features `[M, C]` to the language model's width.
        embed: ids `[L]` to what the language model reads.
        gather: a signal of a rank's heads as one of all heads, by its kind and layer.
    """

    config: Any
    tower: Tower
    width: int
    newline: Callable[[], Tensor | None]
    project: Callable[[Tensor], Tensor]
    embed: Callable[[Tensor], Tensor]
    gather: Callable[[Tensor, str, int], Tensor]


@dataclass
class Images:
    """The images of one call of the tower.

    Attributes:
        specs: what is promised of each.
        rows: each as vLLM packed it, `[L, width]`.
        tiles: tiles of each that went through the tower, those that only pad the call among them.
        pixels: of each, for draws at random.
        record: what was seen of the tower.
    """

    specs: Sequence[Spec]
    rows: Sequence[Tensor]
    tiles: Sequence[int]
    pixels: Callable[[int], Tensor]
    record: Record


class Kept:
    """The rows that are left of an image, and the packed place that each has its position from."""

    def __init__(self, rows: Tensor, anchor: Tensor) -> None:
        self.rows, self.anchor = rows, anchor


def wanted(specs: Sequence[Spec], tower: Tower) -> tuple[set[int], bool]:
    """The layers whose attention is read for these images, and whether the projector's input is."""
    layers, projector = set(), False
    for spec in {each.key: each for each in specs if not each.whole}.values():
        method = spec.create()
        for request in placed(method, tower).values():
            if request.kind in ATTENTION:
                layers.add(int(request.layer))
            projector |= request.kind == "projector_input"
        projector |= method.stage == "vision"
    return layers, projector


def compress(view: View, images: Images, failed: Callable[[int], None]) -> list[Kept]:
    """The promised rows of every image.

    Images of one method are compressed together. Where that fails each is tried by itself, and one that
    fails by itself gets its own rows at even distances.

    Args:
        failed: called for every such image, with its number; the error is logged.
    """
    done: dict[int, Kept] = {}
    groups: dict[tuple[str, str], list[int]] = {}
    for index, spec in enumerate(images.specs):
        groups.setdefault(spec.key, []).append(index)
    signals = _Signals(view, images)

    def keep(members: list[int]) -> None:
        try:
            done.update(_together(view, images, signals, members))
        except Exception:
            if len(members) > 1:
                for index in members:
                    keep([index])
                return
            (index,) = members
            logger.exception(
                "vtc: method %r failed on an image, whose tokens are now taken at even distances",
                images.specs[index].method,
            )
            failed(index)
            done[index] = stand_in(images.rows[index], images.specs[index])

    for members in groups.values():
        keep(members)
    return [done[index] for index in range(len(images.specs))]


def stand_in(rows: Tensor, spec: Spec) -> Kept:
    """Rows at even distances."""
    anchor = spaced(len(rows), spec).to(rows.device)
    return Kept(rows[anchor], anchor)


def _together(
    view: View, images: Images, signals: _Signals, members: Sequence[int]
) -> dict[int, Kept]:
    """The rows of images of one method, by their number.

    Raises:
        Exception: whatever a method raises, or its rows are not those that were promised.
    """
    method = images.specs[members[0]].create()
    requests = placed(method, view.tower)
    kept = {index: _all_of(images, index) for index in members if images.specs[index].whole}
    members = [index for index in members if index not in kept]
    seeds = [0] * len(members)
    if method.draws and members:
        seeds = content_seeds([images.pixels(index) for index in members])
    tokens: list[VisualTokens] = []
    budgets: list[int] = []
    owners: list[int] = []
    for index, seed in zip(members, seeds, strict=True):
        spec = images.specs[index]
        whole = _visual_tokens(view, images, signals, index, method.stage == "vision")
        whole = replace(whole, content_seed=seed, signals=signals.of(index, requests))
        for tile, budget, packing in spec.pieces():
            piece = whole
            if spec.shares:
                piece = VisualTokens(whole.features[tile : tile + 1], packing)
            tokens.append(piece)
            budgets.append(budget)
            owners.append(index)
    outs = replace(method, retention=None, tokens=budgets).compress_all(tokens) if tokens else []
    for index in members:
        mine = [out for out, owner in zip(outs, owners, strict=True) if owner == index]
        kept[index] = _packed(view, images, index, mine, method.stage == "vision")
    _check([kept[index] for index in members], [images.specs[index] for index in members])
    return kept


def _all_of(images: Images, index: int) -> Kept:
    """An image of which nothing is dropped, untouched."""
    rows = images.rows[index]
    if len(rows) != images.specs[index].length:
        raise VTCError(f"image: vLLM made {len(rows)} tokens of it, vtc counts otherwise")
    return Kept(rows, torch.arange(len(rows), device=rows.device))


def _visual_tokens(
    view: View, images: Images, signals: _Signals, index: int, vision: bool
) -> VisualTokens:
    """An image as a method sees it, before the projector where it works there."""
    spec, unit = images.specs[index], images.specs[index].unit
    packed = images.rows[index][:, : view.width]
    if len(packed) != spec.full:
        raise VTCError(f"image: vLLM made {len(packed)} tokens of it, vtc counts {spec.full}")
    if vision and not unit.fused:
        features = signals.places[index].patches_of(signals.projector_rows())
    else:
        features = unit.unpack(packed)
    newline = view.newline() if unit.packing.newline else None
    return VisualTokens(features, unit.packing, newline=newline)


def _packed(
    view: View, images: Images, index: int, outs: Sequence[CompressedTokens], vision: bool
) -> Kept:
    """An image's rows: features of the language model's width, separators as vLLM packed them, and
    features for deeper layers of the same tokens."""
    spec, rows = images.specs[index], images.rows[index]
    unit = spec.unit
    features = joined([out.features for out in outs])
    projected = any(out.projected for out in outs)
    if projected and unit.fused:
        raise VTCError("projector: one of the method's own cannot take the place of one that fuses")
    if vision and not unit.fused and not projected:
        features = view.project(features)
    anchors = [out.anchor for out in outs]
    if spec.shares:  # places in a tile as places in the image
        order = [*range(1, len(spec.shares)), 0]
        starts = [place for place, nth in enumerate(order) if spec.shares[nth]]
        anchors = [a + start * unit.patches for a, start in zip(anchors, starts, strict=True)]
    anchor = joined(anchors)
    if unit.separated:
        is_patch = joined([out.patch for out in outs]) >= 0
        own = rows[:, : view.width][anchor]
        features = torch.where(is_patch[:, None], features, own.to(features.dtype))
    if rows.shape[1] > view.width:
        features = torch.cat([features.to(rows.dtype), rows[:, view.width :][anchor]], 1)
    return Kept(features.to(rows.dtype), anchor)


def _check(kept: Sequence[Kept], specs: Sequence[Spec]) -> None:
    """Raise `VTCError` unless the rows are as many as promised, of the right width, and numbers.

    Waits for the device once.
    """
    for each, spec in zip(kept, specs, strict=True):
        if len(each.rows) != spec.length:
            raise VTCError(
                f"method {spec.method!r} made {len(each.rows)} tokens, {spec.length} are promised"
            )
    if kept and not bool(torch.stack([torch.isfinite(each.rows).all() for each in kept]).all()):
        raise VTCError(f"method {specs[0].method!r} made features that are not finite numbers")


class _Signals:
    """The signals of one call, each computed once for all its images."""

    def __init__(self, view: View, images: Images) -> None:
        self.view, self.images = view, images
        self.units: list[Unit] = [spec.unit for spec in images.specs]
        self.places: list[Place] = []
        tile = row = 0
        for unit, tiles in zip(self.units, images.tiles, strict=True):
            self.places.append(Place(unit, tile, row))
            tile, row = tile + tiles, row + tiles * unit.patches
        self._done: dict[SignalRequest, tuple[Tensor, bool]] = {}

    def of(self, index: int, requests: Mapping[str, SignalRequest]) -> dict[str, Tensor]:
        """The signals of one image, by the names that its method reads."""
        out, place = {}, self.places[index]
        for name, request in requests.items():
            if request.kind in WORDS:
                packed = self.images.rows[index][:, : self.view.width]
                words = self._words(index, packed)
                similar = request.kind == "text_similarity"
                out[name] = of_words(self.units[index].unpack(packed), words) if similar else words
                continue
            if request not in self._done:
                self._done[request] = self._compute(request)
            values, by_tile = self._done[request]
            out[name] = place.tiles_of(values) if by_tile else place.patches_of(values)
            if request.kind == "attention_received" and self.view.tower.windows:
                out[name] = out[name] / out[name].sum(1, keepdim=True)
        return out

    def projector_rows(self) -> Tensor:
        """`[S, C]`, a row a token: what the projector was given, fused where it fuses by itself."""
        given = self.images.record.projector_input
        if not given:
            raise VTCError("model: its projector was not called")
        rows = joined([g.flatten(0, 1) if g.dim() == 3 else g for g in given])
        tokens = sum(t * u.patches for t, u in zip(self.images.tiles, self.units, strict=True))
        return rows if len(rows) == tokens else self._fuse(rows)

    def _fuse(self, values: Tensor) -> Tensor:
        return fused(self.view.config, self.units, values)

    def _words(self, index: int, like: Tensor) -> Tensor:
        """`[L, D]`, what guides the method, as the language model embeds it."""
        ids = torch.tensor(self.images.specs[index].question or [], dtype=torch.long)
        return self.view.embed(ids.to(like.device)).to(like)

    def _compute(self, request: SignalRequest) -> tuple[Tensor, bool]:
        if request.kind == "projector_input":
            return self.projector_rows(), False
        tower, layer = self.view.tower, int(request.layer)
        calls = self.images.record.attention.get(layer)
        if not calls:
            raise VTCError(f"layer: nothing was seen of layer {layer} of the vision tower")
        values, by_tile = of_attention(
            request.kind, calls, int(tower.has_cls), self._fuse, tower.windows
        )
        return self.view.gather(values, request.kind, layer), by_tile
