"""From what the probes saw to the signals of `vtc.tokens.SIGNALS`, one image at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vtc.errors import VTCError
from vtc.plugins.hf.adapters.base import Call
from vtc.plugins.hf.text_encoder import TextEncoder, fits, fits_one_space
from vtc.plugins.model.question import worded
from vtc.plugins.model.signals import HIDDEN, POOLED, TEXT, WORDS, of_attention, of_words
from vtc.plugins.model.units import Place, Unit, places
from vtc.tokens import SignalRequest

if TYPE_CHECKING:
    from vtc.plugins.hf.patch import Patch


class Signals:
    """The signals of one encoder call, each computed once for all its images, on demand.

    Every one is first a flat list over the tower's patches, which the adapter turns into one over
    tokens where the model fuses patches.
    """

    def __init__(self, patch: Patch, call: Call) -> None:
        self.patch, self.call = patch, call
        self.skip = int(patch.has_cls)
        #: patches behind a token where the method judges them one by one
        self.cell = patch.adapter.cell(call.base) if patch.method.by_patch else (1, 1)
        self.units: list[Unit] = []
        self._done: dict[SignalRequest, tuple[Tensor, bool]] = {}

    def places(self, units: Sequence[Unit]) -> Iterator[Place]:
        """The place of each unit among the values of the signals."""
        self.units = list(units)
        if self.cell == (1, 1):
            return places(units)
        down, across = self.cell
        grids = [(unit.patch_grid[0] * down, unit.patch_grid[1] * across) for unit in units]
        return places(
            [
                replace(unit, packing=replace(unit.packing, patch_grid=grid))
                for unit, grid in zip(units, grids, strict=True)
            ]
        )

    def fuse(self, values: Tensor) -> Tensor:
        """Values of patches as those of the tokens made of them, unless patches are judged."""
        return values if self.cell != (1, 1) else self.patch.adapter.fuse(self.call, values)

    def of(self, place: Place, text: str | None, unit: Unit, packed: Tensor) -> dict[str, Tensor]:
        """The signals of one image, by the names that the method reads.

        Args:
            place: of the image.
            text: what it is asked about.
            unit: the image's geometry.
            packed: `[L, D]`, the image as the language model would read it.
        """
        out, embedded = {}, False
        for name, request in self.patch.requests.items():
            if request.kind in WORDS:
                words = self._words(text, packed)
                similar = request.kind == "text_similarity"
                out[name] = of_words(unit.unpack(packed), words) if similar else words
                continue
            if request.kind in TEXT:
                out[name], embedded = self._encoded(request.kind, text or ""), True
                continue
            if request not in self._done:
                self._done[request] = self._compute(request)
            values, by_tile = self._done[request]
            out[name] = place.tiles_of(values) if by_tile else place.patches_of(values)
            if request.kind == "attention_received" and self.patch.adapter.windows:
                out[name] = out[name] / out[name].sum(1, keepdim=True)
        if embedded:
            fits_one_space({self.patch.requests[name].kind: value for name, value in out.items()})
        return out

    def _words(self, text: str | None, like: Tensor) -> Tensor:
        """`[L, D]`, the words of a text as the language model embeds them; none of nothing."""
        text = worded(self.patch.method, text or "")
        ids = self.patch.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        words = self.call.base.get_input_embeddings()
        with torch.no_grad():
            index = torch.tensor(ids, dtype=torch.long, device=words.weight.device)
            return words(index).to(like)

    def _encoded(self, kind: str, text: str) -> Tensor:
        """What the text encoder makes of a text."""
        encoder, device = self.patch.text_encoder, self.call.output.pooler_output[0].device
        if isinstance(encoder, TextEncoder):
            encoder = encoder.on(device)
        if kind == "text_embedding":
            return fits(encoder.embed(text), "embed").to(device)
        make = getattr(encoder, kind.removeprefix("text_"), None)
        if make is None:
            raise VTCError(
                f"text_encoder: {type(encoder).__name__} has no {kind.removeprefix('text_')!r}, which "
                f"method {self.patch.method.name!r} reads of a question; allowed are CLIP's and SigLIP's"
            )
        return make(text).to(device)

    def _compute(self, request: SignalRequest) -> tuple[Tensor, bool]:
        """Values of all tokens `[S, ...]`, or of all tiles `[T, ...]`, and whether it is these."""
        kind = request.kind
        if kind in HIDDEN:
            return self._hidden(request)
        if kind in POOLED:
            return self._pooled(kind)
        if kind == "projector_input":
            return self._projector_input(), False
        if kind == "pixels":
            return self.patch.adapter.token_pixels(self.call, self.units).float(), False
        calls, adapter = self.call.record.attention[int(request.layer)], self.patch.adapter
        return of_attention(kind, calls, self.skip, self.fuse, adapter.windows, adapter.pads)

    def _hidden(self, request: SignalRequest) -> tuple[Tensor, bool]:
        """The output of an encoder layer: of patches, of CLS, or projected into the shared space."""
        states, layer = self.call.output.hidden_states, int(request.layer)
        # not `last_hidden_state`, which a final norm may have gone over
        if layer < self.patch.depth - 1 and len(states) <= layer + 1:
            raise VTCError(
                f"layer: got {layer}, but {type(self.call.base).__name__} gives {len(states)} hidden "
                "states; allowed is the last layer, -1"
            )
        hidden = states[-1] if layer == self.patch.depth - 1 else states[layer + 1]
        if request.kind == "cls_hidden":
            return hidden[:, 0], True
        if request.norm:
            hidden = self.patch.adapter.final_norm(self.call.base, self.call.modality)(hidden)
        hidden = hidden[:, self.skip :].flatten(0, 1) if hidden.dim() == 3 else hidden
        if request.kind == "patch_embedding":
            rows = hidden.shape[:-1]
            hidden = fits(self.patch.text_encoder.project(hidden), "project", *rows)
        return self.fuse(hidden), False

    def _pooled(self, kind: str) -> tuple[Tensor, bool]:
        """Attention `[S]` of the tower's pooling head over patches, or what it pools `[T, C]`."""
        adapter, base = self.patch.adapter, self.call.base
        head = adapter.pooling_head(base, self.call.modality)
        norm = adapter.final_norm(base, self.call.modality)
        with torch.no_grad():
            hidden = norm(self.call.output.hidden_states[-1][:, self.skip :])
            if kind == "pool_output":
                return head(hidden), True
            probe = head.probe.expand(len(hidden), -1, -1)
            weights = head.attention(probe, hidden, hidden, need_weights=True)[1]
        return self.fuse(weights[:, 0].flatten()[:, None])[:, 0], False

    def _projector_input(self) -> Tensor:
        """`[S, C]`, a row a token: what the projector was given, fused where it fuses by itself."""
        given = self.call.record.projector_input
        if given is None:
            raise VTCError(
                f"method: {self.patch.method.name!r} reads what the projector is given, but none of "
                f"{type(self.call.base).__name__} was called"
            )
        lead = int(self.units[0].packing.lead)
        rows = given[:, lead:].flatten(0, 1) if given.dim() == 3 else given
        tokens = sum(unit.tiles * unit.patches for unit in self.units)
        return rows if len(rows) == tokens else self.fuse(rows)
