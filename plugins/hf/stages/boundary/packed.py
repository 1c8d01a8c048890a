"""Several samples in one row, as padding-free training has them.

Without a mask and a cache, transformers reads every step of `position_ids` other than +1 as the border
between two samples and masks across it. A compressed row has gaps as well, so here the borders are read
from the caller's positions, and given to the short row in a form that says no more than that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import masking_utils
from transformers.modeling_flash_attention_utils import prepare_fa_kwargs_from_position_ids

from vtc.plugins.hf import cache
from vtc.plugins.hf.typing import Model
from vtc.plugins.model.compaction import Compaction
from vtc.plugins.model.positions import count_within

#: what a collator may say of the borders for FlashAttention
LENGTHS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


def uses_flash(model: Model) -> bool:
    """Whether the language model attends by FlashAttention."""
    config = model.config.get_text_config()
    return "flash" in (getattr(config, "_attn_implementation", None) or "")


def samples(model: Model, kwargs: dict[str, Any], batch: int, length: int) -> Tensor | None:
    """Int64 `[B, L]`, the number of the sample that each column belongs to; None where a row is one.

    The rule is transformers': it looks for borders where there is neither a mask nor a cache, in the
    text's row of M-RoPE positions. FlashAttention also looks while it fills a cache.
    """
    flash = uses_flash(model)
    borders = kwargs.get(LENGTHS[0])
    if flash and borders is not None and batch == 1:
        columns = torch.arange(length, device=borders.device)
        return (torch.searchsorted(borders.long(), columns, right=True) - 1)[None]
    positions = kwargs.get("position_ids")
    if positions is None or kwargs.get("attention_mask") is not None:
        return None
    if cache.given(kwargs) is not None or (_makes_cache(model, kwargs) and not flash):
        return None
    if positions.dim() == 3:
        if len(positions) != 4:
            return None
        positions = positions[0]
    positions = positions.expand(batch, -1)
    steps = positions.diff(dim=1, prepend=positions[:, :1] - 1)
    numbers = (steps != 1).cumsum(1)
    return numbers if bool(numbers.any()) else None


def _makes_cache(model: Model, kwargs: dict[str, Any]) -> bool:
    """Whether the language model will make a cache of its own."""
    config = model.config.get_text_config()
    use = kwargs.get("use_cache")
    use = getattr(config, "use_cache", False) if use is None else use
    checkpointing = getattr(model, "is_gradient_checkpointing", False) and model.training
    return bool(use) and not checkpointing


def sample_of_places(numbers: Tensor, compaction: Compaction) -> Tensor:
    """The sample of every short place, `[B, S]`; padding is a sample for itself, place by place."""
    short = compaction.gather(numbers.to(compaction.slot.device))
    places = torch.arange(short.shape[1], device=short.device) + int(numbers.max()) + 1
    return torch.where(compaction.valid, short, places)


def mask_of(model: Model, sample: Tensor, types: Tensor | None) -> dict[str, Any]:
    """The arguments that keep samples apart whatever their positions are.

    transformers makes the mask itself, for the attention in use and for every kind of layer, from
    positions that count within each sample.

    Args:
        sample: `[B, S]`, from `sample_of_places`.
        types: token types where the model masks by them.
    """
    counts = count_within(sample)
    if uses_flash(model):
        (q, k), (most_q, most_k) = prepare_fa_kwargs_from_position_ids(counts)
        return dict(zip(LENGTHS, (q, k, most_q, most_k), strict=True))
    weight = model.get_input_embeddings().weight
    like = torch.empty(*counts.shape, 1, dtype=weight.dtype, device=counts.device)
    make = getattr(model, "create_masks_for_generate", masking_utils.create_masks_for_generate)
    arguments: dict[str, Any] = {
        "config": model.config,
        "inputs_embeds": like,
        "attention_mask": None,
        cache.name(model): None,
        "position_ids": counts,
    }
    if types is not None:
        arguments["token_type_ids"] = types
    return {"attention_mask": make(**arguments)}


def one_sample(model: Model, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments that say that a row with gaps in its positions is one sample.

    An explicit mask of ones does for most; FlashAttention drops it and looks at the positions of a
    single row again, so it is told the lengths.
    """
    positions, ids = kwargs.get("position_ids"), kwargs.get("input_ids")
    inputs = ids if ids is not None else kwargs.get("inputs_embeds")
    if positions is None or inputs is None or positions.dim() != 2:
        return {}  # transformers counts, or has a row of M-RoPE positions without gaps
    held, mask, fresh = cache.given(kwargs), kwargs.get("attention_mask"), inputs.shape[1]
    out: dict[str, Any] = {}
    if mask is None and held is None:
        out["attention_mask"] = torch.ones(inputs.shape[:2], dtype=torch.long, device=inputs.device)
    if len(inputs) > 1 or fresh == 1 or not uses_flash(model):
        return out
    if mask is None or bool(mask.all()):
        whole = fresh + cache.length(held)
        q, k = (
            torch.tensor([0, n], dtype=torch.int32, device=inputs.device) for n in (fresh, whole)
        )
        out.update(zip(LENGTHS, (q, k, fresh, whole), strict=True))
    return out
