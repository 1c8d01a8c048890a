"""What a method inside the language model sees at a cut, and what it answers.

A cut is in front of a layer: from there on the language model runs on fewer tokens. Layers are counted
from 0, and layer 0 always sees everything, so the first place for a cut is in front of layer 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

#: whose queries and keys are read at a cut in front of layer K: those of layer K - 1, on what entered
#: it, or those of layer K itself, on what would enter it
Which = Literal["before", "here"]


class Choice(NamedTuple):
    """What a cut leaves.

    Attributes:
        keep: bool `[B, S]`; text has to stay, padding may say either.
        values: `[B, S, D]` hidden states in place of the old ones, where dropped tokens are merged into
            kept ones; None for the old ones.
    """

    keep: Tensor
    values: Tensor | None = None


class Heads(NamedTuple):
    """Queries `[B, H, S, d]` and keys `[B, G, S, d]` of one layer, G dividing H; `scale` is the factor
    on their products."""

    query: Tensor
    key: Tensor
    scale: float


@dataclass(frozen=True)
class Seen:
    """The sequence that arrives at a cut, rows of a batch side by side.

    Attributes:
        cut: number of the cut, from 0.
        layer: the layer that the cut is in front of.
        image: long `[B, S]`, the number of the image within its row, -1 for text and padding. What
            separates an image's rows and tiles (newlines) is part of it.
        place: long `[B, S, 3]`, tile, row and column of an image's patch token within it, -1 for others.
        valid: bool `[B, S]`, False for padding.
        counts: long `[B, I]`, the tokens of each image of a row that have to be left, 0 where a row
            has fewer images.
        asking: long `[B, R]`, places of the tokens that ask: the last one of the prompt; under labels
            each in front of an answer, last one first; -1 where a row has fewer. One that was dropped
            is stood for by what is left in front of it.
        marks: what `LayerMethod.start` gave for the tokens that are still there, `[B, S, ...]`.
    """

    cut: int
    layer: int
    image: Tensor
    place: Tensor
    valid: Tensor
    counts: Tensor
    asking: Tensor
    marks: Tensor | None


class LayerView(Protocol):
    """A cut as a method sees it; what costs something is worked out when it is asked for."""

    @property
    def seen(self) -> Seen:
        """The sequence."""

    @property
    def hidden(self) -> Tensor:
        """`[B, S, D]`, what would enter the layer behind the cut."""

    @property
    def before(self) -> Tensor:
        """`[B, S, D]`, what entered the layer in front of the cut; as everything of that layer, for
        methods that say `reads_before`."""

    def normed(self) -> Tensor:
        """`hidden` through the language model's final norm."""

    def heads(self, layer: Which, rotary: bool = True) -> Heads:
        """Queries and keys of a layer, as its attention sees them; `rotary=False` for those without
        rotary embedding."""

    def attention(
        self,
        rows: Tensor,
        layer: Which,
        *,
        rotary: bool = True,
        among: Tensor | None = None,
        mean: bool = False,
    ) -> Tensor:
        """Float32 `[B, H, R, S]`, the attention probabilities of some rows.

        Keys of earlier turns that a cache holds take part in the softmax, unless `among` says which do
        or rotary embedding is left out, which cached keys carry.

        Args:
            rows: long `[B, R]`, columns of queries; -1 gives a row of zeros.
            layer: whose.
            rotary: whether with rotary embedding.
            among: bool `[B, S]`, the keys of the softmax; None for all that a row may see.
            mean: over heads, `[B, R, S]`.
        """

    def positional(self, rows: Tensor, layer: Which) -> Tensor:
        """Float32 `[B, R, S]`, the attention that positions alone would give: of queries and keys that
        are all ones, under the layer's rotary embedding, over the keys of this call.

        Args:
            rows, layer: as for `attention`.
        """
