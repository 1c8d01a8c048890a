"""`LayerMethod`: methods that drop visual tokens inside the language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from vtc.layers import Choice, LayerView, Seen
from vtc.methods.base import Method


@dataclass
class LayerMethod(Method):
    """Base class of methods inside the language model: where it cuts, how many tokens it leaves there,
    and which.

    `retention` and `tokens` are averages over the layers of the language model, of the tokens that enter
    each, as papers have it. None means the counts of the paper.
    """

    where: ClassVar[Literal["pixels", "boundary", "layers"]] = "layers"
    adaptive: ClassVar[bool] = True
    #: whether `choose` reads `LayerView.before`
    reads_before: ClassVar[bool] = False
    #: whether `choose` looks at the tokens that ask, so that the prompt has to come in one piece
    reads_question: ClassVar[bool] = True

    def cuts(self, depth: int) -> tuple[int, ...]:
        """The layers that have a cut in front of them, rising, each in [1, depth).

        Args:
            depth: layers of the language model.

        Raises:
            VTCError: the method does not fit so many layers.
        """
        raise NotImplementedError

    def counts(self, tokens: int, depth: int) -> tuple[int, ...]:
        """How many of an image's tokens are left behind each cut.

        Args:
            tokens: those in front of any cut.

        Raises:
            VTCError: the budget cannot be had with these cuts.
        """
        raise NotImplementedError

    def start(self, seen: Seen, embeds: Tensor) -> Tensor | None:
        """Something to remember of each token `[B, S, ...]`, from what enters layer 0."""
        return None

    def choose(self, view: LayerView) -> Choice:
        """Which tokens stay behind a cut, for all rows of a batch at once."""
        raise NotImplementedError
