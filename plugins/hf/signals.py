"""From what the probes saw to the signals of `vtc.tokens.SIGNALS`, one image at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vtc.functional.similarity import token_similarity
from vtc.kernels.attention_received import attention_received
from vtc.kernels.cls_attention import cls_attention
from vtc.plugins.hf.adapters.base import Call
from vtc.plugins.hf.probe import Heads
from vtc.plugins.hf.text_encoder import (
    TextEncoder,
    fits_one_space,
    fits_one_text,
    fits_patches,
)
from vtc.plugins.model.layers import layer_index
from vtc.plugins.model.signals import masked_attention_received
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
        self._done: dict[SignalRequest, tuple[Tensor, bool]] = {}

    def places(self, units: Sequence[Unit]) -> Iterator[Place]:
        """The place of each unit among the values of the signals."""
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
            if request.kind == "text_similarity":
                out[name] = self._similarity(unit.unpack(packed), text)
                continue
            if request.kind == "text_embedding":
                encoder, device = self.patch.text_encoder, self.call.output.pooler_output[0].device
                if isinstance(encoder, TextEncoder):
                    encoder = encoder.on(device)
                out[name], embedded = fits_one_text(encoder.embed(text)).to(device), True
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

    def _similarity(self, image: Tensor, text: str | None) -> Tensor:
        """`[T, N]` of tiles `[T, N, D]`."""
        ids = self.patch.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        if not ids:
            return image.new_zeros(image.shape[:2])  # nothing is asked, so no patch fits better
        words = self.call.base.get_input_embeddings()
        with torch.no_grad():
            query = words(torch.tensor(ids, device=words.weight.device)).to(image)
        flat = image.detach().flatten(0, 1)[None].float()
        return token_similarity(flat, query.float())[0].mean(-1).view(image.shape[:2])

    def _compute(self, request: SignalRequest) -> tuple[Tensor, bool]:
        """Values of all tokens `[S, ...]`, or of all tiles `[T, ...]`, and whether it is these."""
        kind = request.kind
        if kind in ("last_hidden", "patch_embedding"):
            # not `last_hidden_state`, which a final norm may have gone over
            hidden = self.call.output.hidden_states[-1]
            hidden = hidden[:, self.skip :].flatten(0, 1) if hidden.dim() == 3 else hidden
            if kind == "patch_embedding":
                hidden = fits_patches(self.patch.text_encoder.project(hidden), hidden)
            return self.fuse(hidden), False
        calls = self.call.record.attention[layer_index(request.layer, self.patch.depth)]
        if kind == "cls_query":
            return _joined([c.query[:, :, 0].flatten(1) for c in calls]), True
        if kind == "keys":
            keys = [c.key.transpose(1, 2).flatten(2) for c in calls]
            if not self.skip:
                return self.fuse(_joined([k.flatten(0, 1) for k in keys])), False
            whole = _joined(keys)
            patches = whole[:, 1:].flatten(0, 1)
            fused = self.fuse(patches)
            if fused is patches:
                return whole, True
            return torch.cat([whole[:, :1], fused.unflatten(0, (len(whole), -1))], 1), True
        patches = _joined([self._attention(kind, c)[:, self.skip :].flatten() for c in calls])
        values = self.fuse(patches[:, None])[:, 0]
        fewer = not self.patch.adapter.pads and len(values) < len(patches)
        if kind != "cls_logits" and fewer:
            values = values * (len(patches) / len(values))
        return values, False

    def _attention(self, kind: str, heads: Heads) -> Tensor:
        """`[B, L]` of one call."""
        if kind == "attention_received":
            query, key, scale, mask = heads
            if mask is not None:
                return masked_attention_received(query, key, scale, mask)
            received = attention_received(query, key, scale)
            # of windows: sums over queries, so that a tile's windows weigh by their size
            return received * received.shape[1] if self.patch.adapter.windows else received
        logits, probabilities = cls_attention(heads.query[:, :, 0], heads.key, heads.scale)
        return logits if kind == "cls_logits" else probabilities


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
