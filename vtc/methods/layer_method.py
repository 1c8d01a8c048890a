"""`LayerMethod`: methods that drop visual tokens inside the language model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from vtc.batch import ImageBatch
from vtc.errors import VTCError
from vtc.functional.layer_counts import counts_within, scaled_layers
from vtc.layers import Choice, LayerView, Seen, Which
from vtc.methods import _fields
from vtc.methods._layers import best_of
from vtc.methods.base import Method
from vtc.packing import Packing
from vtc.selection import Selection
from vtc.tokens import VisualTokens

#: a share of tokens; fractions where floating point would miss whole numbers
Share = float | Fraction


@dataclass
class LayerMethod(Method):
    """Base class of methods inside the language model: where it cuts, how many tokens it leaves there,
    and which.

    Layers are counted from 0. A cut in front of layer K leaves the first K layers as they are, and
    those of a method without `layers` are the paper's, at the same share of the model's depth (see
    `vtc.functional.layer_counts.scaled_layers`).

    `retention` and `tokens` are averages over the layers of the language model, of the tokens that enter
    each, as papers have it. With several cuts the published counts are bent to fit (see
    `vtc.functional.layer_counts.counts_within`). None means the counts of the paper. An image may have
    no token left behind a cut. The prompt keeps its length: the later layers run on fewer tokens.

    A method of this kind is its docstring, its fields, `shares` and `choose`; most `choose` by `best`.

    Attributes:
        layer_retention: None. The share of an image's tokens behind the last cut instead, in (0, 1].
        scope: "image". Every image of a row has its own count and competes with itself alone, or all
            images of a "row" share their counts, as the papers have the frames of a clip.
    """

    layer_retention: float | None = dataclasses.field(default=None, kw_only=True)
    scope: str = dataclasses.field(default="image", kw_only=True)

    where: ClassVar[Literal["pixels", "boundary", "layers"]] = "layers"
    adaptive: ClassVar[bool] = True
    #: the paper's cuts, and the depth of the language model that they are for
    paper_layers: ClassVar[tuple[int, ...]] = ()
    paper_depth: ClassVar[int] = 32
    #: whether `choose` reads what entered the layer in front of the cut, or its queries and keys
    reads_before: ClassVar[bool] = False
    #: whether `choose` looks at the tokens that ask, so that the prompt has to come in one piece
    reads_question: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _fields.one_of("scope", self.scope, ("image", "row"))
        if self.video != "clip":
            raise VTCError(
                f"video: got {self.video!r}, but inside the language model a clip has one budget, "
                "allowed is clip"
            )
        if self.layer_retention is None:
            return
        if self.retention is not None or self.tokens is not None:
            other = "tokens" if self.retention is None else "retention"
            raise VTCError(
                f"layer_retention: got {self.layer_retention!r} beside "
                f"{other}={getattr(self, other)!r}, give only one"
            )
        _fields.share("layer_retention", self.layer_retention)

    # -- where and how many ------------------------------------------------------------------

    def cuts(self, depth: int) -> tuple[int, ...]:
        """The layers that have a cut in front of them, rising, each in [1, depth).

        Args:
            depth: layers of the language model.

        Raises:
            VTCError: the method does not fit so many layers.
        """
        own = self.own_layers()
        if own is None:
            return scaled_layers(self.paper_layers, self.paper_depth, depth)
        if own[-1] >= depth:
            raise VTCError(
                f"{self._layers_field}: got {own[-1]}, but the language model has {depth} layers, "
                f"allowed are 1 to {depth - 1}"
            )
        return own

    def own_layers(self) -> tuple[int, ...] | None:
        """The layers that were asked for; None for the paper's."""
        return None

    _layers_field: ClassVar[str] = "layers"

    def shares(self) -> tuple[Share, ...]:
        """The published share of an image's tokens behind each cut, in (0, 1)."""
        raise VTCError(f"method: {type(self).__name__} must define shares or counts")

    def published(self, tokens: int) -> tuple[int, ...]:
        """The published counts behind each cut."""
        return tuple(self.rounded(tokens, share) for share in self.shares())

    def rounded(self, tokens: int, share: Share) -> int:
        """A share of an image's tokens as a count, rounded as the official code does it."""
        return int(tokens * share)

    def counts(self, tokens: int, depth: int) -> tuple[int, ...]:
        """How many of an image's tokens are left behind each cut.

        That is the budget; what stays is what `choose` says, which may differ where the docstring of a
        method says so.

        Args:
            tokens: those in front of any cut.
            depth: layers of the language model.

        Raises:
            VTCError: the budget cannot be had with these cuts.
        """
        cuts = self.cuts(depth)
        if self.counts_itself:
            return self.published(tokens)
        if self.layer_retention is not None:
            shares = self.shares()
            power = math.log(self.layer_retention) / math.log(shares[-1])
            *first, _ = (self.rounded(tokens, share**power) for share in shares)
            return (*first, self.rounded(tokens, self.layer_retention))
        total = self._total(tokens, depth)
        if total < cuts[0] * tokens:
            raise VTCError(self._too_few(tokens, cuts[0], depth))
        return counts_within(tokens, cuts, depth, self.shares(), total)

    def _total(self, tokens: int, depth: int) -> int:
        """Tokens of an image that may enter all layers together."""
        if self.tokens is not None:
            return self._share(tokens) * depth  # checks `strict`
        return math.floor(self.ratio * tokens * depth + 1e-9)

    def _too_few(self, tokens: int, cut: int, depth: int) -> str:
        asked, least = (
            (f"retention: got {self.retention}", f"{cut / depth:.4g}")
            if self.tokens is None
            else (
                f"tokens: got {self.tokens}",
                f"{cut * tokens / depth:.4g} of an image's {tokens}",
            )
        )
        return (
            f"{asked}, but {cut} of {depth} layers come before the first cut of {self.name!r} and see "
            f"everything, so the average over layers cannot be below {least}; ask for more, cut "
            f"earlier with `{self._layers_field}`, or put a method in front of the language model too"
        )

    # -- which -------------------------------------------------------------------------------

    def start(self, seen: Seen, embeds: Tensor) -> Tensor | None:
        """Something to remember of each token `[B, S, ...]`, from what enters layer 0."""
        return None

    def choose(self, view: LayerView) -> Choice:
        """Which tokens stay behind a cut, for all rows of a batch at once."""
        raise VTCError(f"method: {type(self).__name__} must define choose")

    def groups(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """Who competes with whom.

        Returns:
            long `[B, S]`, the group of an image's token, -1 for text and padding; long `[B, G]`, how
            many of each group are to be left. Groups are images, or all of a row.
        """
        if self.scope == "row":
            return seen.image.clamp(max=0), seen.counts.sum(1, keepdim=True)
        return seen.image, seen.counts

    def best(self, seen: Seen, score: Tensor) -> Tensor:
        """Bool `[B, S]`: text, and of each group the tokens of the highest `score` `[B, S]`, as many as
        the budget says; ties to the lower place."""
        group, counts = self.groups(seen)
        return seen.valid & ((group < 0) | best_of(score, group, counts))

    def by_attention(self, view: LayerView, layer: Which) -> Choice:
        """What the tokens that ask attend to most: mean over heads, then over those that ask."""
        score, asked = self.attention_asked(view, layer)
        return Choice(torch.where(asked, self.best(view.seen, score), view.seen.valid))

    @staticmethod
    def attention_asked(view: LayerView, layer: Which, **options: Any) -> tuple[Tensor, Tensor]:
        """How much the tokens that ask attend to each token: mean over heads, then over those that ask.

        Args:
            layer, options: see `LayerView.attention`.

        Returns:
            float32 `[B, S]`; bool `[B, 1]`, False for rows that nothing asks, which are left whole.
        """
        number = (view.seen.asking >= 0).sum(1, keepdim=True)
        rows = view.attention(view.seen.asking, layer, mean=True, **options)
        return rows.sum(1) / number.clamp(min=1), number > 0

    # -- the budget, to be asked without a model -----------------------------------------------

    @property
    def counts_itself(self) -> bool:
        return super().counts_itself and self.layer_retention is None

    def is_identity(self, image: Packing | VisualTokens) -> bool:
        """Whether the budget asks for every token of this image in every layer."""
        if self.layer_retention is not None:
            return self.layer_retention == 1
        return not self.counts_itself and self.budget(image) >= self.length(image)

    def budget(self, image: Packing | VisualTokens) -> int:
        """Tokens of an image that enter a layer, separators too: the mean over layers, rounded down. All
        of them, the bound, where the mean hangs on the depth of the language model: see `counts`."""
        if self.counts_itself or self.layer_retention is not None:
            return self.length(image)
        return self._share(self.length(image))

    def asked(self, image: Packing | VisualTokens) -> int | None:
        """The mean over layers that the setting asks for; None where it says something else."""
        return None if self.layer_retention is not None else super().asked(image)

    def length(self, image: Packing | VisualTokens) -> int:
        """Tokens of an image in the prompt: all, since none goes in front of the language model."""
        return (image if isinstance(image, Packing) else image.packing).length

    def select(self, batch: ImageBatch) -> Selection:
        raise VTCError(
            f"method: {self.name!r} chooses inside the language model, which has not seen these tokens; "
            "put it on a model with vtc.compress"
        )


@dataclass
class OneCut(LayerMethod):
    """A method with one cut.

    Attributes:
        layer: None. The first layer that runs on fewer tokens, at least 1; None for the paper's, at the
            same share of the model's depth.
    """

    layer: int | None = dataclasses.field(default=None, kw_only=True)

    _layers_field: ClassVar[str] = "layer"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer is not None:
            _fields.whole("layer", self.layer, 1)

    def own_layers(self) -> tuple[int, ...] | None:
        return None if self.layer is None else (int(self.layer),)


@dataclass
class SeveralCuts(LayerMethod):
    """A method with several cuts.

    Attributes:
        layers: None. The layers that have a cut in front of them, rising, from 1 on; None for the
            paper's, at the same shares of the model's depth.
    """

    layers: Sequence[int] | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        number = len(self.shares())
        if self.layers is None:
            if number != len(self.paper_layers):
                raise VTCError(
                    f"layers: {self.name!r} has {number} cuts here, say in front of which"
                )
            return
        _fields.rising("layers", self.layers, 1, number)

    def own_layers(self) -> tuple[int, ...] | None:
        return None if self.layers is None else tuple(map(int, self.layers))
