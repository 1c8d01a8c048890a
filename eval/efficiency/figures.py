"""From the passes of a setting to its figures: medians, ratios to the uncompressed and the ideal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vtc.eval.common.timing import Ratio, ratio, spread
from vtc.eval.efficiency.lines import MEASURES, Measure
from vtc.eval.efficiency.passes import Pass

#: quartiles of a time's ratio further apart than this share of its median: a noisy figure
WIDE = 0.2


@dataclass
class Series:
    """All that was measured for one setting, or for the language model alone.

    Attributes:
        counted: what is the same every time.
        rounds: a pass a timed round.
    """

    counted: Pass
    rounds: list[Pass] = field(default_factory=list)

    def values(self, name: str, true_depth: bool = False) -> list[float]:
        """Figure `name` of every round, or once where it is always the same."""
        passes = [self.counted] if name in self.counted.figures else self.rounds
        return [(one.extrapolated if true_depth else one.figures)[name] for one in passes]


def measures(
    series: Series,
    baseline: Series | None,
    alone: Series | None,
    full: Series | None,
    true_depth: bool = False,
) -> dict[str, Measure]:
    """The figures of a setting.

    Args:
        baseline: the uncompressed model that ratios are to, None when it could not be measured.
        alone: the language model on as many tokens, None when it could not be measured.
        full: the uncompressed model whose encoder the ideal has.
        true_depth: figures at the published depth.
    """
    out = {}
    for name, unit in MEASURES.items():
        own = series.values(name, true_depth)
        if not own:
            continue
        other = baseline.values(name, true_depth) if baseline is not None else []
        ideal = []
        if alone is not None and full is not None:
            ideal = _ideal(name, alone, full, true_depth)
        out[name] = Measure(*spread(own), unit, _ratio(own, other), _ratio(own, ideal))
    return out


def _ideal(name: str, alone: Series, full: Series, true_depth: bool) -> list[float]:
    """A model that gets its tokens for nothing: the encoder as it is, then the language model on
    the tokens that are left."""
    encoder = {"ttft": "vision_time", "flops": "vision_flops"}
    if name in encoder.values():
        return full.values(name, true_depth)
    language = alone.values(name, true_depth)
    if name not in encoder:
        return language
    pairs = zip(full.values(encoder[name], true_depth), language, strict=False)
    return [before + behind for before, behind in pairs]


def _ratio(own: Sequence[float], other: Sequence[float]) -> Ratio | None:
    """Round by round; None where there is nothing to compare with, or that is 0.

    A setting that failed has fewer rounds than the others: its ratios are of the rounds it has.
    """
    if len(other) < len(own) or not all(other):
        return None
    return ratio(own, other[: len(own)])


def noisy(figures: Mapping[str, Measure]) -> list[str]:
    """Names of ratios whose quartiles are far apart."""
    return [
        name
        for name, figure in figures.items()
        if figure.ratio is not None
        and figure.ratio.high - figure.ratio.low > WIDE * figure.ratio.median
    ]
