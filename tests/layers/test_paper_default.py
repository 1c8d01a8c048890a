"""A user of FastV: the paper's setting by name, on Qwen2.5-VL, with a batch of eight.

FlashAttention has no CPU kernel. What vtc owes it is tested with a stand-in: an attention function that
is given what transformers gives FlashAttention, 2-D masks or none, and that leaves padding out as it
does. The stage never names an attention function for a model's own layers. It asks transformers for the
masks of whatever function is set, and reads scores beside it (`plugins/hf/stages/layers/read.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

import vtc
from tests.families import models as families
from tests.families import tiny
from tests.layers.hand import Hand
from tests.layers.methods import Last

DEPTH, NEW = 32, 4
SMALL, WIDE, TALL, LARGE = (("image", size) for size in ((40, 60), (20, 90), (90, 30), (88, 64)))
ROWS: tiny.Rows = [
    [SMALL],
    [WIDE],
    [TALL],
    [LARGE],
    [SMALL, LARGE],
    [],
    [LARGE, WIDE, TALL],
    [TALL],
]
FLASH = "flash_stand_in"
#: what the stand-in was given: tokens of the query and of the keys, dimensions of the mask
given: list[tuple[int, int, int | None]] = []


def flash(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention of each row's real tokens alone, as FlashAttention computes it."""
    batch, heads, fresh, width = query.shape
    held = key.shape[2]
    given.append((fresh, held, None if attention_mask is None else attention_mask.dim()))
    positions = kwargs.get("position_ids")
    if positions is not None and batch == 1:  # a gap would be the border of two samples
        assert bool((positions.diff(dim=-1) == 1).all())
    groups = heads // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    real = torch.ones(batch, held, dtype=torch.bool)
    if attention_mask is not None:
        assert attention_mask.shape == (batch, held)
        real = attention_mask.bool()
    out = query.new_zeros(batch, fresh, heads, width)
    for row in range(batch):
        k, v = key[row][:, real[row]], value[row][:, real[row]]
        asks = real[row, -fresh:]
        q = query[row][:, asks]
        logits = q @ k.mT * kwargs["scaling"]
        behind = torch.ones(logits.shape[-2:]).triu(k.shape[1] - q.shape[1] + 1).bool()
        out[row, asks] = (logits.masked_fill(behind, -torch.inf).softmax(-1) @ v).transpose(0, 1)
    return out, None


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    """Thirty-two layers, as the paper's."""
    AttentionInterface.register(FLASH, flash)
    AttentionMaskInterface.register(FLASH, flash_attention_mask)
    before = families.TEXT["num_hidden_layers"]
    families.TEXT["num_hidden_layers"] = DEPTH
    try:
        torch.manual_seed(0)
        made = tiny.finished(tiny.FAMILIES["qwen2_5_vl"].build(), "sdpa")
        try:
            vtc.apply(made, "none").remove()
        except vtc.VTCError as error:  # an older transformers
            pytest.skip(str(error))
        yield made
    finally:
        families.TEXT["num_hidden_layers"] = before
        AttentionInterface._global_mapping.pop(FLASH)
        AttentionMaskInterface._global_mapping.pop(FLASH)


@pytest.fixture(scope="module")
def by_hand(model: Any) -> list[tuple[Hand, list[int], Tensor]]:
    """Every row alone through layers that are called one by one: cut in front of layer 2, half stay."""
    out = []
    for index, row in enumerate(ROWS):
        alone = tiny.alone("qwen2_5_vl", ROWS, index)
        hand = Hand(model, "qwen2_5_vl", alone, row, Last(layer=2, share=0.5))
        out.append((hand, *hand.greedy(NEW)))
    return out


@pytest.mark.parametrize("attention", ["sdpa", FLASH])
def test_the_papers_default_by_name(model: Any, by_hand: Any, attention: str) -> None:
    lm = model.model.language_model
    model.set_attn_implementation({"text_config": attention})
    given.clear()
    try:
        with torch.no_grad(), vtc.compress(model, "fastv") as run:
            assert lm.config._attn_implementation == attention
            out = model.generate(
                **tiny.inputs("qwen2_5_vl", ROWS),
                max_new_tokens=NEW,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
    finally:
        model.set_attn_implementation({"text_config": "sdpa"})
    logits, images = torch.stack(out.logits, 1), run.reports[0].images
    for row, (hand, tokens, want) in enumerate(by_hand):
        assert out.sequences[row, -NEW:].tolist() == tokens
        assert torch.allclose(logits[row], want, atol=5e-4, rtol=0)
        mine = [image for image in images if image.sample == row]
        assert [image.cuts for image in mine] == [[(2, round(n / 2))] for n in hand.sizes]
    assert len({image.tokens_before for image in images}) >= 3  # sizes are mixed
    if attention == FLASH:
        whole = out.sequences.shape[1] - NEW
        short = max(len(hand.left) for hand, *_ in by_hand)
        prompt, steps = given[:DEPTH], given[DEPTH:]
        assert prompt[:2] == [(whole, whole, 2)] * 2
        assert prompt[2:] == [(short, short, 2)] * (DEPTH - 2)
        assert [held for _, held, _ in steps[:DEPTH]] == [whole + 1] * 2 + [short + 1] * 30
        assert {fresh for fresh, *_ in steps} == {1} and len(steps) == (NEW - 1) * DEPTH


def test_one_row_alone_has_no_mask_and_no_gaps(model: Any) -> None:
    """Positions of what is left have gaps, which FlashAttention would take for borders of samples."""
    sample = tiny.inputs("qwen2_5_vl", [[LARGE]])
    with torch.no_grad(), vtc.compress(model, "fastv"):
        want = model(**sample).logits
        model.set_attn_implementation({"text_config": FLASH})
        given.clear()
        try:
            got = model(**sample).logits
        finally:
            model.set_attn_implementation({"text_config": "sdpa"})
    assert torch.allclose(got, want, atol=5e-4, rtol=0)
    assert {dims for *_, dims in given} == {None} and len(given) == DEPTH
