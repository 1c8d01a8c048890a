"""The checks on what a method returns, the same for every way in: an image, a batch, a frame.

What can be seen without waiting for the device is always checked: kinds, shapes, and counts against
budgets where whoever put the tokens together noted their number. When values are looked at, and when
all of them, says `vtc.checks`. Whole numbers are looked at with NumPy, whose calls cost less than
PyTorch's on some hundred of them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vtc.checks import always, passed, thorough
from vtc.errors import VTCError
from vtc.functional.ragged import cat_views, to_host
from vtc.tokens import CompressedTokens, VisualTokens

if TYPE_CHECKING:
    from vtc.batch import ImageBatch
    from vtc.methods.base import Method
    from vtc.selection import Selection

#: fields that say where tokens stood
PLACES = ("tile", "patch", "anchor")


def check(
    methods: Sequence[Method],
    images: Sequence[VisualTokens],
    outs: Any,
    budgets: Sequence[int] | None = None,
) -> None:
    """Whether `outs` is a result for `images`.

    Args:
        methods: the method with the budget of each image.
        budgets: of each image, where they are known already.

    Raises:
        VTCError: it is not; the message says in what.
    """
    method = methods[0]
    if not isinstance(outs, (list, tuple)) or len(outs) != len(images):
        raise VTCError(
            f"method {method.name!r} returned {type(outs).__name__} for a batch, expected a list of "
            f"{len(images)} CompressedTokens"
        )
    right = True
    for image, out in zip(images, outs, strict=True):
        if not (isinstance(out, CompressedTokens) and out.known_right(image.geometry)):
            right = False
            _check_shapes(method, image, out)
    if budgets is None:
        budgets = [m.budget(image) for m, image in zip(methods, images, strict=True)]
    if not right or outs[0].features.device.type != "cpu" or always():
        _look(method, images, outs, tuple(budgets))
    for each, image, out, budget in zip(methods, images, outs, budgets, strict=True):
        _check_number(each, image, out.num_patches, budget)


def check_selection(batch: ImageBatch, selection: Selection) -> None:
    """Whether a selection is of these images, of each some patch and no more than its budget.

    Raises:
        VTCError: it is not.
    """
    if selection.shapes != batch.shapes:
        raise VTCError(
            f"method {batch.methods[0].name!r} selected of {len(selection.shapes)} other images than it "
            "was given"
        )
    selection.checked(batch.methods[0])
    for method, image, count, budget in zip(
        batch.methods, batch.images, selection.patches, batch.budgets, strict=True
    ):
        _check_number(method, image, count, budget)


def applied(batch: ImageBatch, selection: Selection) -> list[CompressedTokens]:
    """What a selection that was checked leaves; looked at where it is not right by how it was made.

    Raises:
        VTCError: weights or features are no numbers.
    """
    outs = selection.apply(batch)
    known = outs[0].gathered
    if known is None or not known.right or always():
        check(batch.methods, batch.images, outs, batch.budgets)
    return outs


def _look(
    method: Method,
    images: Sequence[VisualTokens],
    outs: Sequence[CompressedTokens],
    budgets: tuple[int, ...],
) -> None:
    """Look at all values, where that is due."""
    first = outs[0].features
    key = type(method), budgets, first.dtype, first.device, *(image.geometry for image in images)
    on_host = first.device.type == "cpu"
    if not on_host and not thorough(*key):
        return
    _check_places(method, images, outs)
    _check_merges(method, images, outs)
    _check_numbers(method, images, outs)
    if not on_host or always():
        _check_signals(method, images)
        passed(*key)


def _check_shapes(method: Method, tokens: VisualTokens, out: Any) -> None:
    who = f"method {method.name!r} returned"
    if not isinstance(out, CompressedTokens):
        raise VTCError(f"{who} {type(out).__name__}, expected CompressedTokens")
    if out.features.dim() != 2:
        raise VTCError(f"{who} features of shape {tuple(out.features.shape)}, expected [M, width]")
    count, width = len(out), tokens.features.shape[2]
    if count == 0:
        raise VTCError(_nothing(method, tokens))
    for name in (*PLACES, "weight"):
        value = getattr(out, name)
        if value.shape != (count,):
            raise VTCError(f"{who} {name} of shape {tuple(value.shape)}, not [{count}]")
        if name != "weight" and value.dtype != torch.long:
            raise VTCError(f"{who} {name} of {value.dtype}, expected torch.int64")
    if not out.projected and (
        out.features.dtype != tokens.features.dtype or out.features.shape[1] != width
    ):
        raise VTCError(
            f"{who} {out.features.dtype} features of width {out.features.shape[1]}, expected "
            f"{tokens.features.dtype} of width {width}"
        )


def _check_number(method: Method, tokens: VisualTokens, count: int | None, budget: int) -> None:
    """Whether so many patch tokens may be left."""
    if count == 0:
        raise VTCError(_nothing(method, tokens))
    if count is not None and count > budget and method.exact and not method.counts_itself:
        raise VTCError(
            f"method {method.name!r} returned {count} patch tokens for an image with "
            f"{tokens.num_patches} patches, its budget is {budget}"
        )


def _nothing(method: Method, tokens: VisualTokens) -> str:
    return (
        f"method {method.name!r} returned no patch token for an image with "
        f"{tokens.num_patches} patches"
    )


def _check_places(
    method: Method, images: Sequence[VisualTokens], outs: Sequence[CompressedTokens]
) -> None:
    """Tiles, patches and anchors in range, and a place of its own for every patch."""
    who = f"method {method.name!r} returned"
    lengths = np.array([len(out) for out in outs])
    tile, patch, anchor = _host([[getattr(out, name) for out in outs] for name in PLACES])
    tiles, patches = zip(*(image.features.shape[:2] for image in images), strict=True)
    packed = [image.geometry.length for image in images]
    bounds = {"tile": (-1, tiles), "patch": (-1, patches), "anchor": (0, packed)}
    for (name, (least, ends)), value in zip(bounds.items(), (tile, patch, anchor), strict=True):
        end = np.repeat(ends, lengths)
        wrong = (value < least) | (value >= end)
        if wrong.any():
            first = wrong.argmax()
            raise VTCError(f"{who} {name} outside [{least}, {end[first]}): {value[first]}")
    real = patch >= 0
    if (tile[real] < 0).any():
        raise VTCError(f"{who} patch tokens of tile -1, which stands for separators")
    # newlines may share an anchor, patches may not: two tokens would stand in one place
    place = anchor + np.repeat(np.cumsum(packed) - packed, lengths)
    if np.bincount(place[real]).max(initial=0) > 1:
        raise VTCError(f"{who} patch tokens with the same anchor, expected one anchor each")
    counts = np.add.reduceat(real, lengths.cumsum() - lengths, dtype=np.int64)
    for image, out, count in zip(images, outs, counts.tolist(), strict=True):
        if count == 0:
            raise VTCError(_nothing(method, image))
        if out.num_patches not in (None, count):
            raise VTCError(f"{who} {count} patch tokens where {out.num_patches} were announced")


def _check_merges(
    method: Method, images: Sequence[VisualTokens], outs: Sequence[CompressedTokens]
) -> None:
    """Outputs and sources of merged tokens in range, their weights numbers."""
    who = f"method {method.name!r} returned a merge index"
    merged = []
    for image, out in zip(images, outs, strict=True):
        index, sources = out.merged, image.features.shape[0] * image.features.shape[1]
        if index is None:
            continue
        if (index.num_outputs, index.num_sources) != (len(out), sources):
            raise VTCError(
                f"{who} from {index.num_sources} patches to {index.num_outputs} tokens, expected "
                f"from {sources} to {len(out)}"
            )
        if not index.output.shape == index.source.shape == index.weight.shape:
            raise VTCError(f"{who} whose output, source and weight are not of one length")
        merged.append(index)
    if not merged:
        return
    sizes = [len(index.output) for index in merged]
    found = _host([[index.output for index in merged], [index.source for index in merged]])
    most = [[index.num_outputs for index in merged], [index.num_sources for index in merged]]
    for name, value, ends in zip(("output", "source"), found, most, strict=True):
        if ((value < 0) | (value >= np.repeat(ends, sizes))).any():
            raise VTCError(f"{who} with a {name} that is out of range")
    if not math.isfinite(_sums([[index.weight for index in merged]])[0]):
        for image, out in zip(images, outs, strict=True):
            _find_spoilt(method, image, out)


def _check_signals(method: Method, images: Sequence[VisualTokens]) -> None:
    """Warn of signals that are no numbers: they are the model's, but nothing follows from them."""
    names = sorted(set.intersection(*(set(image.signals) for image in images)))
    sums = _sums([[image.signals[name] for image in images] for name in names])
    broken = [name for name, total in zip(names, sums, strict=True) if math.isnan(total)]
    if broken:
        warnings.warn(
            f"signals: {', '.join(broken)} of the model, which method {method.name!r} goes by, are not "
            "all numbers; did they overflow in half precision?",
            stacklevel=2,
        )


def _check_numbers(
    method: Method, images: Sequence[VisualTokens], outs: Sequence[CompressedTokens]
) -> None:
    """Weights are finite, and so are features that were made of finite ones."""
    values = [[out.features for out in outs], [out.weight for out in outs]]
    if not all(map(math.isfinite, _sums(values))):
        for image, out in zip(images, outs, strict=True):
            _find_spoilt(method, image, out)


def _find_spoilt(method: Method, tokens: VisualTokens, out: CompressedTokens) -> None:
    """Raise where the method made a number of what is none; what it was given so is not its fault."""
    who = f"method {method.name!r} returned"
    features = out.features.isfinite().all(1)
    weights = [out.weight, *([] if out.merged is None else [out.merged.weight])]
    if bool(features.all()) and all(bool(x.isfinite().all()) for x in weights):
        return
    given = tokens.features.isfinite().all(2).flatten()
    if out.merged is None:  # what its tokens are made of is not said: any of the image
        excused = (~given).any().expand_as(features)
    else:
        excused = torch.zeros_like(features)
        excused[out.merged.output[~given[out.merged.source]]] = True
    what = ""
    if not bool((features | excused).all()):
        what = "features that are not a number, made of ones that are"
    elif bool(given.all()):
        what = "weights that are not a number"
    if what:
        broken = [name for name, value in tokens.signals.items() if bool(value.isnan().any())]
        also = f"; the model's {', '.join(broken)} are none either" if broken else ""
        raise VTCError(f"{who} {what}{also}")
    warnings.warn(
        f"features: not all that the model made, and method {method.name!r} was given, are finite; "
        "did they overflow in half precision?",
        stacklevel=2,
    )


def _sums(groups: Sequence[Sequence[Tensor]]) -> list[float]:
    """The sum of each, which is not finite where a term is not: one pass, and nothing stored."""
    if not groups:
        return []
    plain = ([part.detach() if part.requires_grad else part for part in some] for some in groups)
    sums = [cat_views(some).sum(dtype=torch.float32) for some in plain]
    return to_host(torch.stack(sums)).tolist()


def _host(groups: Sequence[Sequence[Tensor]]) -> Any:
    """Whole numbers of all images behind each other, a row of a NumPy array for each group."""
    return to_host(torch.stack([cat_views(some) for some in groups])).numpy()
