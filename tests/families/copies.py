"""The reference for attention in proportion to weights: a token of weight w stands there w times.

Copies have one position and see each other, so that all of them stay alike from layer to layer. Every
token then attends to them w times, without a logarithm or a bias anywhere. The masks of the bare
language model are made here, element by element, by the numbers of tokens, of which copies share one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from tests.families.by_hand import Short


@torch.no_grad()
def logits(model: nn.Module, short: Short) -> Tensor:
    """`[S, V]`, of the first copy of every token."""
    lm = getattr(model.model, "language_model", None) or model.model.text_model
    weights = torch.tensor(short.weights, device=short.ids.device)
    number = torch.arange(len(weights), device=weights.device).repeat_interleave(weights)
    common: dict[str, Any] = {
        "inputs_embeds": short.embeds[:, number],
        "position_ids": short.positions[..., number] + int(_is(model, "PaliGemma")),
        "attention_mask": masks(model, lm, short, number),
        "use_cache": False,
    }
    if any(short.deep.values()):
        common |= deep(short, number)
    first = weights.cumsum(0) - weights
    hidden = lm(**common).last_hidden_state[:, first]
    return model.lm_head(hidden)[0]


def deep(short: Short, number: Tensor) -> dict[str, Any]:
    """Qwen3's rows for deeper layers, of every copy."""
    from tests.families.by_hand import deep_arguments

    given = deep_arguments(short)
    where = given["visual_pos_masks"][0]
    nth = (where.long().cumsum(0) - 1)[number][where[number]]
    return {
        "visual_pos_masks": where[number][None],
        "deepstack_visual_embeds": [level[nth] for level in given["deepstack_visual_embeds"]],
    }


def masks(model: nn.Module, lm: nn.Module, short: Short, number: Tensor) -> Any:
    """What the language model takes as masks, `[1, 1, N, N]` each: 0 where a copy sees another."""
    kinds = set(getattr(lm.config, "layer_types", None) or ())
    window = getattr(lm.config, "sliding_window", None)
    if not {"sliding_attention"} & kinds:
        return expanded(seen(model, short, window if not kinds else None), number, model.dtype)
    return {
        "full_attention": expanded(seen(model, short, None), number, model.dtype),
        "sliding_attention": expanded(seen(model, short, window), number, model.dtype),
    }


def expanded(of_tokens: Tensor, number: Tensor, dtype: torch.dtype) -> Tensor:
    mask = of_tokens.to(number.device)[number][:, number][None, None]
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def seen(model: nn.Module, short: Short, window: int | None) -> Tensor:
    """Bool `[S, S]`, which tokens a token sees."""
    length = short.ids.shape[1]
    out = torch.zeros(length, length, dtype=torch.bool)
    block = blocks(model, short)
    for a in range(length):
        for b in range(length):
            near = b <= a or (block[a] >= 0 and block[a] == block[b])
            out[a, b] = near and (window is None or b > a - window)
    return out


def blocks(model: nn.Module, short: Short) -> list[int]:
    """The block of each token, whose tokens see each other; -1 for none."""
    length = short.ids.shape[1]
    if "token_type_ids" not in short.types:
        return [-1] * length
    types = short.types["token_type_ids"][0].tolist()
    if _is(model, "PaliGemma"):
        return [0 if kind == 0 else -1 for kind in types]
    out, block = [], -1
    for place, kind in enumerate(types):
        block += kind == 1 and (place == 0 or types[place - 1] != 1)
        out.append(block if kind == 1 else -1)
    return out


def _is(model: nn.Module, family: str) -> bool:
    return type(model).__name__.startswith(family)
