"""The text side of a long call, and what its KV cache holds in front of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vtc.errors import VTCError
from vtc.plugins.hf import cache
from vtc.plugins.hf.cache import Held
from vtc.plugins.hf.stages.boundary.encode import Encoded, some
from vtc.plugins.hf.typing import Model
from vtc.plugins.model.compaction import Compaction
from vtc.plugins.model.inputs import PIXELS
from vtc.plugins.model.positions import default_positions, last_of

if TYPE_CHECKING:
    from vtc.plugins.hf.patch import Patch


@dataclass
class Past:
    """What the cache of a call holds, in the caller's columns and in short places.

    Attributes:
        compaction: of it, `[B, C]`.
        columns: T, the caller's columns that it stands for.
        long: int64 `[R, B, T]`, their positions.
        own: int64 `[R, B, C]`, the positions of the short places.
        after: int64 `[R, B]`, the short position that comes next on each axis.
        visual: bool `[B, C]`.
    """

    compaction: Compaction
    columns: int
    long: Tensor
    own: Tensor
    after: Tensor
    visual: Tensor


def has_pixels(kwargs: dict[str, Any]) -> bool:
    """Whether a call brings images or clips."""
    return any(some(kwargs.get(key)) for key in PIXELS.values())


class Prompt:
    """The text side of a long call.

    Attributes:
        ids, embeds: `[B, L]` and `[B, L, D]`; one of them may be None.
        past: what the cache holds, None when it is empty or absent.
        first: columns of the call that are in the cache already.
        mask: the caller's for its own columns `[B, L]`, None when it gave none.
        real: bool `[B, L]`, False for padding and for what is masked.
    """

    def __init__(
        self, model: Model, patch: Patch, kwargs: dict[str, Any], generating: bool
    ) -> None:
        self.model, self.patch, self.kwargs, self.generating = model, patch, kwargs, generating
        self.ids, self.embeds = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
        inputs = self.ids if self.ids is not None else self.embeds
        if inputs is None:
            raise VTCError("input_ids: got None beside pixels; give input_ids or inputs_embeds")
        self.batch, self.length = inputs.shape[:2]
        self.device = inputs.device
        mask = _attention_mask(model, kwargs, generating)
        self.past = past_of(model, patch, kwargs, self.batch, mask, self.device, generating)
        held = 0 if self.past is None else self.past.columns
        self.first = held if generating else 0
        if generating and self.past is not None and self.length <= held:
            raise VTCError(
                f"input_ids: got {self.length} columns, but the cache holds {held} already; generate "
                "takes the whole conversation"
            )
        whole = self.length if generating else held + self.length
        if mask is not None and mask.shape != (self.batch, whole):
            raise VTCError(
                f"attention_mask: got shape {tuple(mask.shape)}, expected {(self.batch, whole)}; pass "
                "the whole conversation when a cache is continued"
            )
        self.mask = mask if mask is None or generating else mask[:, held:]
        self.real = torch.ones(self.batch, self.length, dtype=torch.bool, device=self.device)
        if self.mask is not None:
            self.real = self.mask.bool().to(self.device)

    @cached_property
    def placeholders(self) -> dict[str, Tensor]:
        """Modality -> bool `[B, L]`, where the new columns hold its placeholders.

        Raises:
            VTCError: pixels whose placeholders are in the cache.
        """
        out = {}
        for modality, key in PIXELS.items():
            token = self.patch.adapter.token_id(self.model.config, modality)
            if token is None:
                continue
            if self.ids is not None:
                here = self.ids == token
            else:
                assert self.embeds is not None
                embed = self.model.get_input_embeddings()
                row = embed(torch.tensor(token, device=self.embeds.device))
                here = (self.embeds == row).all(-1)
            here[:, : self.first] = False
            if self.first and some(self.kwargs.get(key)) and not bool(here.any()):
                # transformers refuses them as well: its features and placeholders do not match
                raise VTCError(
                    f"{key}: the new part of the prompt has no placeholders for them; what earlier "
                    "turns showed is in the cache, so pass what the new turn shows alone, or None"
                )
            out[modality] = here
        return out

    def of(self, done: list[Encoded]) -> Tensor:
        """Bool `[B, L]`: the placeholders of what was encoded."""
        none = torch.zeros_like(self.real)
        return torch.stack([none, *(self.placeholders[e.modality] for e in done)]).any(0)

    @cached_property
    def visual(self) -> Tensor:
        """Bool `[B, L]`: every placeholder among the new columns, whatever its modality."""
        return torch.stack(list(self.placeholders.values())).any(0)


def past_of(
    model: Model,
    patch: Patch,
    kwargs: dict[str, Any],
    batch: int,
    mask: Tensor | None,
    device: torch.device,
    generating: bool = False,
) -> Past | None:
    """What the call's cache holds; a cache that was filled without compression holds what it says."""
    held_in = cache.given(kwargs)
    count = cache.length(held_in)
    if count == 0:
        return None
    known = cache.held(held_in)
    if known is None:
        empty = torch.zeros(batch, 0, dtype=torch.long, device=device)
        nothing = Compaction(empty, empty, empty.bool(), False)
        none = empty[None].new_zeros(1, batch)
        known = Held(nothing, 0, empty[None], empty[None], none, empty.bool())
    known = cache.fit(known, batch, cache.name(model))
    c, fresh = known.compaction, count - known.places
    columns = known.seen + fresh
    seen = torch.ones(batch, fresh, dtype=torch.bool, device=device)
    if mask is not None and mask.shape[1] >= columns:
        seen = mask[:, known.seen : columns].bool().to(device)
    slots = known.seen + torch.arange(fresh, device=device).expand(batch, -1)
    compaction = concat_compactions(c, Compaction(slots, slots, seen, False))
    step = default_positions(seen)
    if known.seen:
        start, next_long = known.after, last_of(known.long) + 1
    else:
        next_long = torch.zeros(batch, dtype=torch.long, device=device)
        next_long = next_long + _deltas(model, patch, kwargs, batch, count, device, generating)
        start = next_long[None]
    long = concat_positions(known.long, (next_long[:, None] + step)[None])
    own = torch.cat([known.own, start[..., None] + step], 2)
    visual = torch.cat([known.visual, torch.zeros_like(seen)], 1)
    return Past(compaction, columns, long, own, start + seen.sum(1), visual)


def _deltas(
    model: Model,
    patch: Patch,
    kwargs: dict[str, Any],
    batch: int,
    count: int,
    device: torch.device,
    generating: bool,
) -> Tensor | int:
    """What M-RoPE positions are ahead of a count of tokens in a cache that was filled without
    compression, `[B]`; 0 where they are not.

    transformers keeps the number on the model for the last prompt with images, be it this one's or not.
    """
    deltas = getattr(model.base_model, "rope_deltas", None)
    if deltas is None or not bool(torch.as_tensor(deltas).any()):
        return 0
    if kwargs.get("position_ids") is not None:
        return 0
    ids = kwargs.get("input_ids")
    if ids is None or not generating:
        raise VTCError(
            "position_ids: got None behind a cache that was filled without compression, which may "
            "hold images or not; give them, or use generate with the whole conversation"
        )
    tokens = [patch.adapter.token_id(model.config, modality) for modality in PIXELS]
    seen = torch.stack([ids[:, :count] == t for t in tokens if t is not None]).any()
    if not bool(seen):
        return 0
    deltas = torch.as_tensor(deltas).reshape(-1).to(device)
    return deltas.expand(batch) if len(deltas) == 1 else deltas[:batch]


def concat_positions(front: Tensor, back: Tensor) -> Tensor:
    """Positions `[R, B, ...]` behind others, with as many axes as the one that has more."""
    rows = max(len(front), len(back))
    return torch.cat([x.expand(rows, -1, -1) for x in (front, back)], 2)


def concat_compactions(front: Compaction, back: Compaction) -> Compaction:
    """Two parts of a conversation, one behind the other."""
    return Compaction(
        torch.cat([front.slot, back.slot], 1),
        torch.cat([front.position, back.position], 1),
        torch.cat([front.valid, back.valid], 1),
        front.ragged or back.ragged,
    )


def _attention_mask(model: Model, kwargs: dict[str, Any], generating: bool) -> Tensor | None:
    mask = kwargs.get("attention_mask")
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.dim() != 2:
            got = f"{mask.dim()} dimensions" if isinstance(mask, Tensor) else type(mask).__name__
            raise VTCError(
                f"attention_mask: got {got}, allowed is [batch, length] while a model is compressed"
            )
        return mask
    ids = kwargs.get("input_ids")
    if not generating or ids is None:
        return None
    # generate infers padding from the ids when it gets no mask; so must we
    pad, end = (generation_setting(model, kwargs, f"{which}_token_id") for which in ("pad", "eos"))
    ends = end if isinstance(end, (list, tuple)) else [end]
    if pad is None or pad in ends or not bool((ids == pad).any()):
        return None
    return (ids != pad).long()


def generation_setting(model: Model, kwargs: dict[str, Any], name: str) -> Any:
    """A setting of `generate`: a keyword, then the caller's config, then the model's; None if unset."""
    configs = kwargs.get("generation_config"), getattr(model, "generation_config", None)
    values = (kwargs.get(name), *(getattr(config, name, None) for config in configs))
    return next((value for value in values if value is not None), None)
