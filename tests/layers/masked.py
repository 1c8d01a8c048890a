"""The reference that removes nothing: layers behind a cut get masks that hide what was dropped.

So it runs under whatever transformers does with the bare model. What was dropped is told from outside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

#: layer -> bool `[B, L]`, columns that are gone from there on
Gone = Mapping[int, Tensor]


@contextmanager
def hiding(model: nn.Module, gone: Gone) -> Iterator[None]:
    """Inside, layers hide columns of the prompt; rows of a call are copies of the prompt's."""
    lm = getattr(model.model, "language_model", None) or model.model.text_model

    def mask_of(number: int, hidden: Tensor, given: Any, held_in: Any) -> Tensor:
        batch, fresh = hidden.shape[:2]
        held = 0
        if held_in is not None and len(held_in.layers) > number:
            held = int(held_in.layers[number].get_seq_length())
        if given is None:
            size = held + fresh
            seen = torch.ones(fresh, size, dtype=torch.bool).tril(held)[None, None]
        else:
            size = given.shape[-1]
            seen = given if given.dtype == torch.bool else given == 0
        mine = gone[number].repeat_interleave(batch // len(gone[number]), 0)[:, :size]
        mine = torch.nn.functional.pad(mine, (0, size - mine.shape[1]))[:, None, None]
        own = torch.zeros(fresh, size, dtype=torch.bool)
        for query in range(fresh):
            own[query, held + query] = True
        # a column that is gone sees itself, so that what nobody reads stays a number
        seen = (seen & ~mine) | (own & mine)
        if given is None or given.dtype == torch.bool:
            return seen
        return (
            torch.zeros_like(hidden[0, 0, 0])
            .expand(seen.shape)
            .masked_fill(~seen, torch.finfo(hidden.dtype).min)
        )

    def hide(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        number = layer.self_attn.layer_idx
        if number not in gone:
            return None
        held_in = kwargs.get("cache", kwargs.get("past_key_values"))
        hidden = args[0] if args else kwargs["hidden_states"]
        mask = mask_of(number, hidden, kwargs.get("attention_mask"), held_in)
        return args, {**kwargs, "attention_mask": mask}

    hooks = [layer.register_forward_pre_hook(hide, with_kwargs=True) for layer in lm.layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def gone_by_hand(
    columns: list[dict[int, list[int]]], shown: Tensor, depth: int
) -> dict[int, Tensor]:
    """What layers hide, from what each cut has left of each row alone.

    Args:
        columns: of each row, layer -> columns of the unpadded row that the cut in front of it left.
        shown: bool `[B, L]`, the columns of the padded rows that are real.
    """
    cuts = sorted(columns[0])
    out = {}
    for layer in range(cuts[0], depth):
        cut = max(c for c in cuts if c <= layer)
        gone = shown.clone()
        for row, mine in enumerate(columns):
            gone[row, shown[row].nonzero().squeeze(1)[mine[cut]]] = False
        out[layer] = gone
    return out
