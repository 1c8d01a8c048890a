"""A compressed model equals the language model fed by hand with the short prompt."""

from __future__ import annotations

import pytest
import torch

import vtc
from tests.hf import by_hand, tiny
from tests.hf.methods import KINDS

NEW = 6


@pytest.mark.parametrize("positions", ["original", "contiguous"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_generate_equals_the_language_model_alone(family: str, kind: str, positions: str) -> None:
    """Tokens and the logits of every step, rows alone and in a ragged left-padded batch."""
    model, batch = tiny.build(family), tiny.inputs(family, tiny.MIXED)
    expected = [
        by_hand.greedy(model, row, NEW)
        for row in by_hand.rows(model, batch, KINDS[kind], positions)
    ]
    ask = dict(
        max_new_tokens=NEW, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    length = batch["input_ids"].shape[1]
    with vtc.compress(model, KINDS[kind], positions=positions):
        together = model.generate(**batch, **ask)
        singles = [
            model.generate(**tiny.row(batch, tiny.MIXED, i), **ask) for i in range(len(tiny.MIXED))
        ]
    assert torch.equal(together.sequences[:, :length], batch["input_ids"])
    for i, (tokens, steps) in enumerate(expected):
        assert together.sequences[i, length:].tolist() == tokens
        assert singles[i].sequences[0, -NEW:].tolist() == tokens
        keep = [v for v in range(tiny.VOCAB) if v != tiny.IMAGE]
        for got in (torch.stack(together.logits)[:, i], torch.stack(singles[i].logits)[:, 0]):
            torch.testing.assert_close(got[:, keep], steps[:, keep], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("positions", ["original", "contiguous"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_forward_equals_the_language_model_alone(
    family: str, kind: str, positions: str, side: str
) -> None:
    """Logits of a plain forward; the short rows are padded on the side the user padded."""
    model, batch = tiny.build(family), tiny.inputs(family, tiny.MIXED, side=side)
    with torch.no_grad():
        short = by_hand.rows(model, batch, KINDS[kind], positions)
        with vtc.compress(model, KINDS[kind], positions=positions):
            out = model(**batch).logits
        assert out.shape[1] == max(len(row.ids) for row in short)
        for got, row in zip(out, short, strict=True):
            mine = got[-len(row.ids) :] if side == "left" else got[: len(row.ids)]
            torch.testing.assert_close(mine, by_hand.logits(model, row), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("positions", ["original", "contiguous"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_no_mask_does_not_split_the_prompt(family: str, positions: str) -> None:
    """Gaps in the positions are not read as borders of packed sequences when no mask is given."""
    model, batch = tiny.build(family), tiny.inputs(family, tiny.ONE)
    del batch["attention_mask"]
    with torch.no_grad():
        full = {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}
        (row,) = by_hand.rows(model, full, KINDS["norms"], positions)
        with vtc.compress(model, KINDS["norms"], positions=positions):
            for cache in (False, True):
                got = model(**batch, use_cache=cache).logits[0]
                torch.testing.assert_close(got, by_hand.logits(model, row), atol=1e-4, rtol=1e-4)
