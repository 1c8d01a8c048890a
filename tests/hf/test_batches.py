"""A batch equals its rows alone, whatever its images and its padding."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig

import vtc
from tests.hf import by_hand, tiny
from tests.hf.methods import KINDS, Norms, Ragged

NEW = 5
GREEDY = dict(max_new_tokens=NEW, do_sample=False)
BATCHES = {
    "one-image-each": [[(40, 60)], [(40, 60)]],
    "ragged": [[(32, 96)], [(96, 33)], [(50, 50)]],
    "several": [[(40, 60), (33, 90)], [(64, 64)], [(90, 31), (20, 20), (64, 30)]],
    "text-first": [[], [(40, 60)], [], [(31, 90), (64, 64)]],
}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["norms", "ragged", "pairs"])
@pytest.mark.parametrize("rows", BATCHES)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_batch_equals_rows_alone(family: str, rows: str, kind: str, side: str) -> None:
    """Generated tokens and forward logits of each row, padded left or right."""
    model, batch = tiny.build(family), tiny.inputs(family, BATCHES[rows], side=side)
    length = batch["input_ids"].shape[1]
    with torch.no_grad(), vtc.compress(model, KINDS[kind]) as run:
        together, logits = model.generate(**batch, **GREEDY), model(**batch).logits
        samples = [image.sample for image in run.reports[-1].images]
        for i in range(len(BATCHES[rows])):
            single = tiny.row(batch, BATCHES[rows], i)
            assert model.generate(**single, **GREEDY)[0, -NEW:].tolist() == (
                together[i, length:].tolist()
            )
            alone = model(**single).logits[0]
            mine = logits[i, -len(alone) :] if side == "left" else logits[i, : len(alone)]
            torch.testing.assert_close(mine, alone, atol=1e-4, rtol=1e-4)
    assert torch.equal(together[:, :length], batch["input_ids"])
    assert samples == [i for i, images in enumerate(BATCHES[rows]) for _ in images]


@pytest.mark.parametrize("family", ["llava-clip", "next-clip"])
def test_padding_is_read_from_the_ids_when_there_is_no_mask(family: str) -> None:
    """generate without a mask finds padding by the pad token, as transformers does."""
    model, batch = tiny.build(family), tiny.inputs(family, tiny.MIXED)
    with vtc.compress(model, Norms(0.5)):
        expected = model.generate(**batch, **GREEDY)
        mask = batch.pop("attention_mask")
        assert (mask == 0).any()
        assert torch.equal(model.generate(**batch, **GREEDY), expected)


GIVEN = {
    "keyword": (None, dict(pad_token_id=tiny.PAD)),
    "config": (None, dict(generation_config=GenerationConfig(pad_token_id=tiny.PAD))),
    "model's beside a config": (tiny.PAD, dict(generation_config=GenerationConfig())),
    "end that is no padding": (tiny.PAD, dict(eos_token_id=tiny.EOS)),
}


@pytest.mark.parametrize("case", GIVEN)
def test_pad_and_end_ids_are_read_where_transformers_reads_them(case: str) -> None:
    """Keywords, then the caller's config, then the model's."""
    model, batch = tiny.build("llava-clip"), tiny.inputs("llava-clip", tiny.MIXED)
    own, given = GIVEN[case]
    with vtc.compress(model, Norms(0.5)):
        expected = model.generate(**batch, **GREEDY)
        del batch["attention_mask"]
        model.generation_config.pad_token_id = own
        model.generation_config.eos_token_id = tiny.PAD if "eos_token_id" in given else None
        assert torch.equal(model.generate(**batch, **given, **GREEDY), expected)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32], ids=str)
def test_mask_may_have_any_type(dtype: torch.dtype) -> None:
    """Bool, integer and float masks of ones and zeros mean the same."""
    model, batch = tiny.build("next-clip"), tiny.inputs("next-clip", tiny.MIXED)
    with torch.no_grad(), vtc.compress(model, Norms(0.5)):
        expected = model(**batch).logits
        real = torch.zeros(expected.shape[:2], dtype=torch.bool)
        for i, row in enumerate(by_hand.rows(model, batch, Norms(0.5))):
            real[i, -len(row.ids) :] = True
        batch["attention_mask"] = batch["attention_mask"].to(dtype)
        torch.testing.assert_close(model(**batch).logits[real], expected[real])


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_one_retention_for_each_image(family: str) -> None:
    """A list of retentions is dealt to the images in reading order."""
    batch = tiny.inputs(family, BATCHES["several"])
    model, ratios = tiny.build(family), [0.25, 1.0, 0.5, 0.75, 0.3, 0.1]
    with vtc.compress(model, Norms(ratios)) as run:
        out = model.generate(**batch, **GREEDY)
    for image, ratio in zip(run.reports[-1].images, ratios, strict=True):
        assert image.patches_after == int(ratio * image.patches_before + 1e-9)
    for i, row in enumerate(by_hand.rows(model, batch, Norms(ratios))):
        assert out[i, -NEW:].tolist() == by_hand.greedy(model, row, NEW)[0]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_caller_keeps_his_tensors(family: str) -> None:
    """Neither forward nor generate writes into the caller's inputs."""
    model, batch = tiny.build(family), tiny.inputs(family, tiny.MIXED)
    batch["labels"] = batch["input_ids"].clone()
    copy = {key: value.clone() for key, value in batch.items()}
    with torch.no_grad(), vtc.compress(model, KINDS["pairs"]):
        model(**batch)
        model.generate(**{k: v for k, v in batch.items() if k != "labels"}, **GREEDY)
    assert all(torch.equal(batch[key], copy[key]) for key in copy)


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_rows_that_needed_no_padding_end_together(family: str, mask: bool) -> None:
    """`logits[:, -1]` are the next token's also where only compression made the rows ragged."""
    rows = [[(40, 60)], [(40, 60)], [(40, 60)]]
    model, batch = tiny.build(family), tiny.inputs(family, rows, side="right", seed=11)
    width = int(batch["attention_mask"].sum(1).min())
    batch = {
        k: v[:, :width] if v.dim() == 2 and k != "image_sizes" else v for k, v in batch.items()
    }
    with torch.no_grad():
        short = by_hand.rows(model, batch, Ragged())
        assert len({len(row.ids) for row in short}) > 1
        if not mask:
            del batch["attention_mask"]
        with vtc.compress(model, Ragged()):
            last = model(**batch).logits[:, -1]
        for got, row in zip(last, short, strict=True):
            torch.testing.assert_close(got, by_hand.logits(model, row)[-1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mask", [True, False])
def test_no_label_is_predicted_from_padding(mask: bool) -> None:
    """Rows made ragged by compression: a label on the first token costs nothing, as ever."""
    rows = [[(40, 60)], [(40, 60)], [(40, 60)]]
    model, batch = tiny.build("next-clip"), tiny.inputs("next-clip", rows, side="right", seed=11)
    width = int(batch["attention_mask"].sum(1).min())
    batch = {
        k: v[:, :width] if v.dim() == 2 and k != "image_sizes" else v for k, v in batch.items()
    }
    batch["labels"] = batch["input_ids"].masked_fill(batch["input_ids"] == tiny.IMAGE, -100)
    with torch.no_grad():
        total, count = 0.0, 0
        for i, row in enumerate(by_hand.rows(model, batch, Ragged())):
            labels = batch["labels"][i][row.columns][1:]
            scores = by_hand.logits(model, row)[:-1]
            total += float(torch.nn.functional.cross_entropy(scores, labels, reduction="sum"))
            count += int((labels != -100).sum())
        if not mask:
            del batch["attention_mask"]
        with vtc.compress(model, Ragged()):
            assert float(model(**batch).loss) == pytest.approx(total / count, rel=1e-5)
