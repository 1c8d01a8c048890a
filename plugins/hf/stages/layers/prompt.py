"""`Prompt`: a prompt on its way through the layers of the language model, and its cuts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vtc.errors import VTCError
from vtc.layers import Choice, Seen
from vtc.plugins.hf import cache
from vtc.plugins.hf.stages.boundary.proportional import Bias
from vtc.plugins.hf.stages.layers.deepstack import Deepstack
from vtc.plugins.hf.stages.layers.masks import make_masks, of_layer, replace_bias, replace_mask
from vtc.plugins.hf.stages.layers.notes import Held, Notes, bias_like, edges
from vtc.plugins.hf.stages.layers.part import Part
from vtc.plugins.hf.stages.layers.shown import Shown
from vtc.plugins.hf.stages.layers.view import Entered, View, held_keys
from vtc.plugins.hf.typing import Model
from vtc.plugins.model.cuts import gathered

if TYPE_CHECKING:
    from vtc.methods.layer_method import LayerMethod
    from vtc.plugins.hf.adapters.base import Adapter


class Prompt:
    """A call that brings a prompt with images; it travels with the call as one keyword.

    What a cut leaves is decided once; a layer that a checkpoint runs again finds it here.

    Attributes:
        model, lm, adapter: the model, its language model, and what is known of both.
        method: decides what the cuts leave.
        shown: the prompt.
        cuts: layers that have one in front of them, also those where nothing has to go.
        budgets: layer -> tokens to leave behind the cut in front of it, of each image of the prompt.
        notes: what the cache of the call holds of earlier turns, None for no cuts.
        bias: what is added to the logits of all attention to each column, `[B, P]` of the cache's and
            `[B, L]` of the prompt's; None for nothing.
        parts: layer -> the sequence from there on to the next cut.
        deepstack: what is added to the layers behind the first cut.
    """

    prompt = True

    def __init__(
        self,
        model: Model,
        lm: Model,
        adapter: Adapter,
        method: LayerMethod,
        shown: Shown,
        budgets: Mapping[int, Sequence[int]],
        asking: Tensor,
        types: Tensor | None,
        notes: Notes | None,
    ) -> None:
        self.model, self.lm, self.adapter = model, lm, adapter
        self.method, self.shown, self.notes = method, shown, notes
        self.budgets = dict(sorted(budgets.items()))
        self.cuts = method.cuts(len(lm.layers))
        self.edges = edges(notes, [*budgets], len(lm.layers))
        first = min(budgets)
        seen = Seen(
            cut=self.cuts.index(first),
            layer=first,
            image=shown.image,
            place=shown.place,
            valid=shown.valid,
            counts=self._counts(first),
            asking=asking,
            marks=None,
        )
        self.parts = {0: Part(seen, types)}
        self.deepstack: Deepstack | None = None
        self.bias: tuple[Tensor, Tensor] | None = None
        self._entered: dict[int, Entered] = {}
        self._started = False

    def at(
        self, number: int, layer: Model, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What decoder layer `number` is given in place of `args` and `kwargs`."""
        hidden = args[0] if args else kwargs["hidden_states"]
        if number == 0 and not self._started:
            self._start(hidden)
        if self.deepstack is not None:
            hidden = self.deepstack.add(number, hidden, self.part(number - 1).index)
        if number in self.budgets:
            hidden = self._cut(number, layer, hidden, kwargs)
        part = self.part(number)
        self._place(part, kwargs)
        edge = next((edge for edge in self.edges if edge[0] <= number < edge[1]), None)
        if edge is not None:
            masks = self._masks(part, edge, hidden, cache.given(kwargs))
            replace_mask(kwargs, of_layer(masks, self.lm, number))
            replace_bias(kwargs, self._bias(part, edge[0]))
        behind = number + 1
        if self.method.reads_before and behind in self.budgets and behind not in self.parts:
            self._entered[behind] = self._enters(number, layer, hidden, kwargs, ran=True)
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": hidden}

    def part(self, number: int) -> Part:
        """The sequence that layer `number` runs on."""
        return self.parts[max(first for first in self.parts if first <= max(number, 0))]

    # -- the cuts ----------------------------------------------------------------------------------

    def _start(self, embeds: Tensor) -> None:
        """What the method remembers of each token."""
        self._started = True
        part = self.parts[0]
        marks = self.method.start(part.seen, embeds.detach())
        if marks is not None and marks.shape[:2] != embeds.shape[:2]:
            raise VTCError(
                f"method {self.method.name!r} returned {list(marks.shape)} from start, expected "
                f"{[*embeds.shape[:2], '...']}"
            )
        part.seen = replace(part.seen, marks=marks)

    def _cut(self, number: int, layer: Model, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """The hidden states behind the cut in front of layer `number`."""
        known = self.parts.get(number)
        if known is None or known.merged:  # hidden states of its own are made anew for a checkpoint
            front = self.part(number - 1)
            own = dict(kwargs)
            self._place(front, own)
            here = self._enters(number, layer, hidden, own, ran=False)
            blocks = None if front.types is None else self.adapter.blocks(front.types)
            view = View(front.seen, here, self._entered.get(number), self.lm.norm, blocks)
            choice = self._checked(self.method.choose(view), hidden)
            if known is None:
                later = [layer for layer in self.budgets if layer > number]
                ahead = min(later, default=len(self.lm.layers))
                counts = self._counts(ahead) if later else front.seen.counts
                cut = self.cuts.index(ahead) if later else len(self.cuts)
                known = front.behind(choice, cut, ahead, counts, self.method.name)
                self.parts[number] = known
            if not (known.merged and hidden.requires_grad):
                self._entered.pop(number, None)
            if choice.values is not None:
                hidden = choice.values.to(hidden)
        assert known.step is not None
        return gathered(hidden, known.step, 1)

    def _checked(self, choice: Choice, hidden: Tensor) -> Choice:
        keep, values = choice
        if keep.dtype != torch.bool or keep.shape != hidden.shape[:2]:
            raise VTCError(
                f"method {self.method.name!r} returned {keep.dtype} {list(keep.shape)} as what stays, "
                f"expected torch.bool {list(hidden.shape[:2])}"
            )
        if values is not None and values.shape != hidden.shape:
            raise VTCError(
                f"method {self.method.name!r} returned hidden states {list(values.shape)}, expected "
                f"{list(hidden.shape)}"
            )
        return choice

    def _counts(self, number: int) -> Tensor:
        """Int64 `[B, I]`, the budgets of the cut in front of layer `number`."""
        shown = self.shown
        counts = torch.zeros(len(shown.image) // shown.copies, max(shown.most, 1), dtype=torch.long)
        for image, count in zip(shown.images, self.budgets[number], strict=True):
            counts[image.row, image.number] = count
        return counts.repeat_interleave(shown.copies, 0).to(shown.image.device)

    # -- what a layer is given ---------------------------------------------------------------------

    def _place(self, part: Part, kwargs: dict[str, Any]) -> None:
        """Positions of what is left."""
        if part.index is None:
            return
        if kwargs.get("position_embeddings") is not None:
            kwargs["position_embeddings"] = part.positions(kwargs["position_embeddings"])
        if kwargs.get("position_ids") is not None:
            # FlashAttention takes a gap in the positions of a row for the border of two samples
            flash = "flash" in (self.lm.config._attn_implementation or "")
            positions = None if flash else gathered(kwargs["position_ids"], part.index)
            kwargs["position_ids"] = positions

    def _masks(self, part: Part, edge: tuple[int, int], hidden: Tensor, held_in: Any) -> Any:
        """The masks of layers that hold the same."""
        if edge[0] not in part.masks:
            past, padded = self._past(edge[0])
            valid = None
            if padded or part.padded:
                valid = part.seen.valid.to(hidden.device)
                if past is not None:
                    valid = torch.cat([past.to(valid.device), valid], 1)
            types = part.types
            if past is not None and types is not None:
                # what is in the cache counts as text; some models mask by types at its start alone
                ahead = (past.shape[1], 0)
                types = torch.nn.functional.pad(types, ahead)
                types = None if self.adapter.wants_new_cache else types
            part.masks[edge[0]] = make_masks(
                self.model, self.lm, hidden, valid, held_in, edge, types
            )
        return part.masks[edge[0]]

    def _bias(self, part: Part, number: int) -> Bias | None:
        """What is added to the logits of attention in layer `number`, of earlier turns in front."""
        if self.bias is None:
            return None
        if number not in part.biases:
            past, own = self.bias
            held = None if self.notes is None else self.notes.of(number)
            if held is not None:
                past = bias_like(held.bias, held.valid).to(own.device)
            own = own if part.index is None else gathered(own, part.index.to(own.device))
            part.biases[number] = Bias(torch.cat([past, own], 1))
        return part.biases[number]

    def _past(self, number: int) -> tuple[Tensor | None, bool]:
        """What layer `number` holds of earlier turns `[B, P]`, and whether there may be padding."""
        held = None if self.notes is None else self.notes.of(number)
        if held is not None:
            return held.valid, held.padded
        return self.shown.past, self.shown.past is not None

    def _enters(
        self, number: int, layer: Model, hidden: Tensor, kwargs: dict[str, Any], ran: bool
    ) -> Entered:
        """What enters a layer; `ran`: it will have run when it is read."""
        past, _ = self._past(number)
        places = 0 if past is None else past.shape[1]
        held_in = cache.given(kwargs)

        def keys() -> Tensor | None:
            return held_keys(held_in, number, places, hidden.shape[1] if ran else 0)

        bias = self._bias(self.part(number if ran else number - 1), number)
        columns = None if bias is None else bias.columns
        return Entered(layer, hidden, kwargs.get("position_embeddings"), keys, past, columns)

    # -- behind the last layer ---------------------------------------------------------------------

    def notes_behind(self, front: int) -> Notes:
        """What the cache of the call holds now.

        Args:
            front: what layer 0 holds.
        """
        held, shared = [], self.shown.valid.shape[1]
        for first, last in self.edges:
            part = self.part(first)
            past, padded = self._past(first)
            valid = part.seen.valid
            whole = valid if past is None else torch.cat([past.to(valid.device), valid], 1)
            bias = self._bias(part, first)
            columns = None if bias is None else bias.columns
            held.append(Held(first, last, whole, padded or part.padded, columns))
        looked = self.parts[0].looked
        if looked is not None:
            told = (looked.image >= 0) | ~looked.valid
            shared = int(told.flip(1).long().cumsum(1).eq(0).sum(1).min())
        return Notes(held, front, shared)
