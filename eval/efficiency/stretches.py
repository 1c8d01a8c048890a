"""Layers of a language model between cuts: how many there are as measured, and as published.

Where tokens are dropped between layers, a layer's time, FLOPs and cache are those of its stretch, and at
the published depth every stretch has its own number of layers.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from vtc.functional.layer_counts import scaled_layers

if TYPE_CHECKING:
    from vtc.methods.base import Method
    from vtc.methods.layer_method import LayerMethod


@dataclass(frozen=True)
class Stretches:
    """Layers from cut to cut; one stretch where nothing is cut.

    Attributes:
        ran: layers of each as measured.
        published: the same of the published model.
    """

    ran: tuple[int, ...]
    published: tuple[int, ...]

    def whole(self, values: Sequence[float]) -> float:
        """What all published layers need, by what each layer that ran needs."""
        return sum(
            number * statistics.fmean(mine)
            for number, mine in zip(self.published, self._split(values), strict=True)
        )

    def missing(self, values: Sequence[float]) -> float:
        """The part of `whole` that is not in `values` yet."""
        return self.whole(values) - sum(values) if self.ran != self.published else 0.0

    def mean(self, values: Sequence[float]) -> float:
        """Of a layer of the published model."""
        return self.whole(values) / sum(self.published)

    def _split(self, values: Sequence[float]) -> list[Sequence[float]]:
        ends = [sum(self.ran[:number]) for number in range(len(self.ran) + 1)]
        return [values[a:b] for a, b in pairwise(ends)]


def stretches(method: LayerMethod | None, ran: int, published: int) -> Stretches:
    """The layers between the cuts of a method.

    Args:
        method: inside the language model, as `at_depth` gives it; None for no cut.
        ran: layers as measured.
        published: layers of the published model.
    """
    if method is None:
        return Stretches((ran,), (published,))
    ours, theirs = method.cuts(ran), published_cuts(method, published)
    return Stretches(_spans(ours, ran), _spans(theirs, published))


def _spans(cuts: Sequence[int], depth: int) -> tuple[int, ...]:
    return tuple(b - a for a, b in pairwise((0, *cuts, depth)))


def inside(methods: Sequence[Method]) -> LayerMethod | None:
    """The one of some methods that works inside the language model."""
    from vtc.methods.layer_method import LayerMethod

    return next((method for method in methods if isinstance(method, LayerMethod)), None)


def published_cuts(method: LayerMethod, depth: int) -> tuple[int, ...]:
    """The cuts of a method on the published model, whatever `at_depth` has made of it."""
    own: Any = getattr(type(method), "_published", type(method))
    return tuple(own.cuts(method, depth))


def at_depth(method: LayerMethod, published: int) -> LayerMethod:
    """A method that cuts a model of fewer layers at the same shares of its depth as the published one,
    with the same counts.

    Counts that follow from an average over layers would be others at another depth, and so would layers
    that were given as numbers.

    Args:
        published: layers of the published model.
    """
    cls: Any = type(method)

    def cuts(self: Any, depth: int) -> tuple[int, ...]:
        return scaled_layers(cls.cuts(self, published), published, depth)

    def counts(self: Any, tokens: int, depth: int) -> tuple[int, ...]:
        return tuple(cls.counts(self, tokens, published))

    own = {"cuts": cuts, "counts": counts, "_published": cls}
    shallow: Any = copy.copy(method)
    shallow.__class__ = type(cls.__name__, (cls,), own)
    made: LayerMethod = shallow
    return made
