"""`Part`: the sequence between two cuts of a prompt."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vtc.errors import VTCError
from vtc.layers import Choice, Seen
from vtc.plugins.hf.stages.boundary.proportional import Bias
from vtc.plugins.model.cuts import cut as cut_short
from vtc.plugins.model.cuts import gathered, moved


@dataclass
class Looked:
    """A sequence on the CPU.

    Attributes:
        image: int64 `[B, S]`, as in `Seen`.
        valid: bool `[B, S]`.
        columns: int64 `[B, S]`, of the prompt.
    """

    image: Tensor
    valid: Tensor
    columns: Tensor


@dataclass
class Part:
    """The sequence between two cuts.

    Attributes:
        seen: as the next cut will see it.
        types: token types `[B, S]`, None where the model masks by none.
        step: int64 `[B, S]`, the places of the part in front that are left; None for the first part.
        index: int64 `[B, S]`, the columns of the prompt; None for the first part, which has them all.
        padded: whether there may be padding.
        merged: whether the cut gave hidden states of its own.
        looked: the sequence on the CPU; None for the first part before it is cut.
        rotary: cosines and sines by what they were gathered from.
        masks: of the layers, by the first of those that share them.
        biases: the same of what is added to the logits of attention to each key.
    """

    seen: Seen
    types: Tensor | None
    step: Tensor | None = None
    index: Tensor | None = None
    padded: bool = True
    merged: bool = False
    looked: Looked | None = None
    rotary: dict[int, tuple[Any, Any]] = field(default_factory=dict)
    masks: dict[int, Any] = field(default_factory=dict)
    biases: dict[int, Bias] = field(default_factory=dict)

    def positions(self, embeddings: tuple[Tensor, ...]) -> Any:
        """The cosines and sines of what is left."""
        if self.index is None:
            return embeddings
        known = self.rotary.get(id(embeddings[0]))
        if known is None:
            made = tuple(gathered(x, self.index, 1) for x in embeddings)
            # the original is kept alive, and with it its identity
            known = self.rotary[id(embeddings[0])] = (embeddings[0], made)
        return known[1]

    def behind(self, choice: Choice, cut: int, layer: int, counts: Tensor, name: str) -> Part:
        """The part behind a cut; looks at the device once.

        Args:
            choice: what the cut leaves.
            cut: the number of the next one.
            layer: that it is in front of.
            counts: what that one has to leave, see `Seen`.
            name: of the method.

        Raises:
            VTCError: text is gone.
        """
        seen = self.seen
        if self.looked is None:
            looks = torch.stack([choice.keep.long(), seen.valid.long(), seen.image]).cpu()
            columns = torch.arange(looks.shape[2]).expand(looks.shape[1:])
            keep, self.looked = looks[0].bool(), Looked(looks[2], looks[1].bool(), columns)
        else:
            keep = choice.keep.cpu()
        front = self.looked
        if bool((~keep & front.valid & (front.image < 0)).any()):
            raise VTCError(f"method {name!r} dropped text, which has to stay")
        keep = keep & front.valid
        left = cut_short(keep)
        device = seen.image.device
        step, valid = left.places.to(device), left.valid.to(device)
        image = gathered(seen.image, step).masked_fill(~valid, -1)
        marks = seen.marks
        after = replace(
            seen,
            cut=cut,
            layer=layer,
            image=image,
            place=gathered(seen.place, step, 1).masked_fill(~valid[..., None], -1),
            valid=valid,
            counts=counts,
            asking=moved(seen.asking, keep.to(device), valid),
            marks=None if marks is None else gathered(marks, step, marks.dim() - 2),
        )
        return Part(
            after,
            None if self.types is None else gathered(self.types, step),
            step,
            step if self.index is None else gathered(self.index, step),
            left.padded,
            choice.values is not None,
            Looked(
                gathered(front.image, left.places).masked_fill(~left.valid, -1),
                left.valid,
                gathered(front.columns, left.places),
            ),
        )
