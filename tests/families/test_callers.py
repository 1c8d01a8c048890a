"""The ways in which trainers and owners of caches call a model, against the language model alone.

Every reference is a prompt shortened by hand, one sample at a time and without padding.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from transformers import DynamicCache, StaticCache

import vtc
from tests.families import by_hand, matrix, tiny
from vtc.errors import VTCError
from vtc.plugins.hf import cache as caches

CLOSE = dict(atol=2e-4, rtol=2e-4)
POLICIES = pytest.mark.parametrize("positions", matrix.POSITIONS)
#: their language models mask by other rules in packed rows, or cannot be packed at all
PACKABLE = ["llava", "llava_pixtral", "llava_next", "llava_onevision", "internvl", "idefics3"]
MROPE = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
METHOD = dict(retention=0.5)


def method(name: str = "uniform") -> Any:
    return vtc.create_method(name, **METHOD)


def cache_name(model: nn.Module) -> str:
    """What this version of transformers calls a cache."""
    return caches.name(model)


def one(family: str, seed: int, shown: tuple = tiny.A) -> dict[str, Any]:
    """A prompt with one image, without a mask."""
    batch = tiny.inputs(family, [[shown]], seed)
    return batch


def hand(model: nn.Module, batch: dict[str, Any], positions: str) -> tuple[by_hand.Short, Tensor]:
    """The short prompt, and the scores `[S, V]` behind each of its tokens."""
    short = by_hand.shorten(model, batch, method(), positions)
    return short, by_hand.logits(model, short)


# -- packed rows -----------------------------------------------------------------------------------


def packed(model: nn.Module, samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Samples behind each other in one row: positions start afresh, and there is no mask."""
    out: dict[str, Any] = {}
    if samples[0]["pixel_values"].dim() == 5 and "Idefics" not in type(model).__name__:
        most = max(s["pixel_values"].shape[1] for s in samples)
        samples = [{**s, "pixel_values": tiles_up_to(s["pixel_values"], most)} for s in samples]
    for key in samples[0]:
        if key == "attention_mask":
            continue
        text = key in ("input_ids", "token_type_ids", "mm_token_type_ids")
        idefics = "Idefics" in type(model).__name__ and key.startswith("pixel")
        out[key] = torch.cat([s[key] for s in samples], int(text or idefics))
    if hasattr(model.model, "get_rope_index"):
        rows = []
        for s in samples:
            axes = by_hand.long_positions(model, s)
            rows.append(torch.cat([torch.arange(axes.shape[1])[None], axes]))
        out["position_ids"] = torch.cat(rows, 1)[:, None]
    else:
        counts = [torch.arange(s["input_ids"].shape[1]) for s in samples]
        out["position_ids"] = torch.cat(counts)[None]
    return out


def tiles_up_to(pixels: Tensor, most: int) -> Tensor:
    """Padding tiles behind those of an image, `[1, T, 3, h, w]`."""
    return pad(pixels, (0, 0, 0, 0, 0, 0, 0, most - pixels.shape[1]))


@POLICIES
@pytest.mark.parametrize("family", PACKABLE + MROPE)
def test_packed_rows(family: str, positions: str) -> None:
    """Each sample gives what it gives alone."""
    model = matrix.model_of(family)
    samples = [one(family, 1, tiny.A), one(family, 2, tiny.C), one(family, 3, tiny.B)]
    both = packed(model, samples)
    with torch.no_grad(), vtc.compress(model, method(), positions=positions) as run:
        got = model(**both, use_cache=False).logits[0]
        columns = run.compaction.slot[0].tolist()
    start = place = 0
    for sample in samples:
        short, want = hand(model, sample, positions)
        size = len(want)
        assert [c - start for c in columns[place : place + size]] == short.columns
        torch.testing.assert_close(got[place : place + size], want, **CLOSE)
        start, place = start + sample["input_ids"].shape[1], place + size
    assert place == len(got)


@POLICIES
def test_packed_rows_of_a_batch(positions: str) -> None:
    """Two rows of several samples, of which one is shorter: its padding is a sample by itself."""
    model = matrix.model_of("llava_next")
    rows = [[one("llava_next", 1, tiny.A), one("llava_next", 2, tiny.C)]]
    rows.append([one("llava_next", 4, tiny.C), one("llava_next", 5, tiny.C)])
    batches = [packed(model, row) for row in rows]
    long, short = sorted(batches, key=lambda b: -b["input_ids"].shape[1])
    gap = long["input_ids"].shape[1] - short["input_ids"].shape[1]
    # words of a third sample fill the shorter row
    short["input_ids"] = torch.cat([short["input_ids"], torch.arange(7, 7 + gap)[None]], 1)
    short["position_ids"] = torch.cat([short["position_ids"], torch.arange(gap)[None]], 1)
    most = max(b["pixel_values"].shape[1] for b in batches)
    for b in batches:
        b["pixel_values"] = tiles_up_to(b["pixel_values"], most)
    both = {key: torch.cat([b[key] for b in batches]) for key in batches[0]}
    with torch.no_grad(), vtc.compress(model, method(), positions=positions) as run:
        got = model(**both, use_cache=False).logits
        slot, valid = run.compaction.slot, run.compaction.valid
    for r, row in enumerate(rows):
        start = 0
        for sample in row:
            short, want = hand(model, sample, positions)
            here = valid[r] & (slot[r] >= start) & (slot[r] < start + sample["input_ids"].shape[1])
            torch.testing.assert_close(got[r][here], want, **CLOSE)
            start += sample["input_ids"].shape[1]


@POLICIES
def test_the_loss_of_packed_rows(positions: str) -> None:
    """Every sample's own loss, and none across a border that its labels mark."""
    model = matrix.model_of("llava")
    samples = [one("llava", 1), one("llava", 2)]
    both = packed(model, samples)
    labels = []
    for sample in samples:
        ids = sample["input_ids"]
        labels.append(ids.masked_fill(ids == tiny.IMAGE, -100))
        labels[-1][0, 0] = -100
    with torch.no_grad(), vtc.compress(model, method(), positions=positions):
        loss = model(**both, labels=torch.cat(labels, 1), use_cache=False).loss
    losses = []
    for sample, label in zip(samples, labels, strict=True):
        short, want = hand(model, sample, positions)
        losses.append(cross_entropy(want[:-1], label[0][short.columns][1:], reduction="none"))
    each = torch.cat(losses)
    torch.testing.assert_close(loss, each.sum() / (each != 0).sum(), **CLOSE)


# -- what trainers ask for --------------------------------------------------------------------------


def completed(family: str) -> tuple[dict[str, Any], list[dict[str, Any]], int]:
    """Prompts padded left, completions padded right: the batch, its rows alone, and N."""
    rows = [[tiny.A], [tiny.C], [tiny.B]]
    batch = tiny.inputs(family, rows, 3)
    texts = [[5, 6, 7, 2], [8, 2], [9, 4, 2]]
    width = max(map(len, texts))
    ids = torch.tensor([t + [tiny.PAD] * (width - len(t)) for t in texts])
    mask = torch.tensor([[1] * len(t) + [0] * (width - len(t)) for t in texts])
    singles = []
    for index, text in enumerate(texts):
        single = tiny.alone(family, rows, index, 3)
        singles.append(longer(single, torch.tensor([text])))
    whole = longer(batch, ids)
    whole["attention_mask"] = torch.cat([batch["attention_mask"], mask], 1)
    return whole, singles, width


def longer(batch: dict[str, Any], ids: Tensor) -> dict[str, Any]:
    """The batch with more text behind it."""
    out = dict(batch, input_ids=torch.cat([batch["input_ids"], ids], 1))
    for key, value in (("attention_mask", 1), ("mm_token_type_ids", 0), ("token_type_ids", 0)):
        if key in batch:
            out[key] = torch.cat([batch[key], torch.full_like(ids, value)], 1)
    return out


def at_columns(columns: list[int], scores: Tensor, wanted: list[int]) -> Tensor:
    """Scores of each wanted column: its own, or those of the last token before it that is left."""
    return torch.stack([scores[max(i for i, c in enumerate(columns) if c <= w)] for w in wanted])


@POLICIES
@pytest.mark.parametrize("how", ["number", "columns", "negative"])
@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl", "internvl", "gemma3"])
def test_completions(family: str, how: str, positions: str) -> None:
    """`logits_to_keep` counts the caller's columns, whatever was dropped in front of them."""
    model = matrix.model_of(family)
    batch, singles, count = completed(family)
    length = batch["input_ids"].shape[1]
    columns = list(range(length - count - 1, length))
    keep: Any = count + 1
    if how != "number":
        keep = torch.tensor(columns) - (length if how == "negative" else 0)
    with torch.no_grad(), vtc.compress(model, method(), positions=positions):
        got = model(**batch, logits_to_keep=keep).logits
    assert got.shape[:2] == (len(singles), count + 1)
    for row, single in enumerate(singles):
        first = int(batch["attention_mask"][row].argmax())
        real = [c for c in columns if batch["attention_mask"][row, c]]
        short, scores = hand(model, single, positions)
        want = at_columns(short.columns, scores, [c - first for c in real])
        torch.testing.assert_close(got[row, [columns.index(c) for c in real]], want, **CLOSE)


@pytest.mark.parametrize("tuples", [False, True])
def test_columns_by_number(tuples: bool) -> None:
    """Any columns in any order; one that was dropped has what is known there; others are refused."""
    model, batch = matrix.model_of("llava"), one("llava", 1)
    short, scores = hand(model, batch, "original")
    length = batch["input_ids"].shape[1]
    keep = torch.tensor([length - 1, 3, 10, 11, -2])
    with torch.no_grad(), vtc.compress(model, method()):
        out = model(**batch, logits_to_keep=keep, return_dict=not tuples)
        got = out[0][0] if tuples else out.logits[0]
        with pytest.raises(VTCError, match="logits_to_keep: got columns"):
            model(**batch, logits_to_keep=torch.tensor([length]))
    want = at_columns(short.columns, scores, [c % length for c in keep.tolist()])
    torch.testing.assert_close(got, want, **CLOSE)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_vl", "idefics3"])
def test_shifted_labels(family: str, side: str) -> None:
    """`shift_labels` give the loss that `labels` give, and other values by column are cut as well."""
    model = matrix.model_of(family)
    batch = tiny.inputs(family, [[tiny.A], [tiny.C]], 2, side)
    ids = batch["input_ids"]
    labels = ids.masked_fill((ids == tiny.IMAGE) | (batch["attention_mask"] == 0), -100)
    shifted = pad(labels, (0, 1), value=-100)[:, 1:].contiguous()
    total, count = 0.0, 0
    for row in range(2):
        single = tiny.alone(family, [[tiny.A], [tiny.C]], row, 2, side)
        short, scores = hand(model, single, "original")
        mine = labels[row][batch["attention_mask"][row].bool()][short.columns]
        total = total + cross_entropy(scores[:-1], mine[1:], reduction="sum")
        count += int((mine[1:] != -100).sum())
    with torch.no_grad(), vtc.compress(model, method()):
        loss = model(**batch, labels=labels, shift_labels=shifted).loss
    torch.testing.assert_close(loss, total / count, **CLOSE)


# -- hidden images ------------------------------------------------------------------------------------


def hidden_run(family: str, batch: dict[str, Any], which: int) -> Tensor:
    """Columns of one image's placeholders."""
    places = (batch["input_ids"][0] == tiny.IMAGE).nonzero()[:, 0]
    gaps = (places.diff() > 1).nonzero()[:, 0].tolist()
    bounds = [0, *[g + 1 for g in gaps], len(places)]
    return places[bounds[which] : bounds[which + 1]]


@POLICIES
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("shares", [0.5, [1.0, 0.5], [0.5, 1.0]])
@pytest.mark.parametrize("family", ["llava", "llava_next", "llava_onevision", "paligemma"])
def test_a_hidden_image(family: str, shares: Any, which: int, positions: str) -> None:
    """What its prompt masks is not shown: the same as a prompt from which it was cut by hand."""
    model = matrix.model_of(family)
    batch = tiny.inputs(family, [[tiny.A, tiny.C]], 1)
    run = hidden_run(family, batch, which)
    batch["attention_mask"][0, run] = 0
    other = dict(batch, pixel_values=batch["pixel_values"].clone())
    other["pixel_values"][which] = torch.randn_like(other["pixel_values"][which]) * 3
    with (
        torch.no_grad(),
        vtc.compress(model, "uniform", retention=shares, positions=positions) as handle,
    ):
        got, changed = model(**batch).logits[0], model(**other).logits[0]
        counts = [i.patches_after for i in handle.reports[-1].images]
        plan = handle.compaction
    assert counts[which] == 0 and counts[1 - which] > 0
    if plan is None:  # all that is seen is kept: the bare model's own mask
        real = batch["attention_mask"][0].bool()
        got, changed = got[real], changed[real]
    else:
        assert not set(plan.slot[0][plan.valid[0]].tolist()) & set(run.tolist())
    assert torch.equal(got, changed)


@pytest.mark.parametrize(
    "name", ["uniform", "globalcom2", "pool", "recoverable", "token_correlation"]
)
def test_a_partly_hidden_image(name: str) -> None:
    """Hidden patches are not chosen and not merged, and the budget is a share of what is seen."""
    model, batch = matrix.model_of("llava"), one("llava", 1)
    places = (batch["input_ids"][0] == tiny.IMAGE).nonzero()[:, 0]
    hidden = [0, 1, 2, 5, 9]
    batch["attention_mask"][0, places[hidden]] = 0
    options = dict(text_score="similarity", question="x") if name == "recoverable" else {}
    processor = tiny_tokenizer() if name == "recoverable" else None
    with (
        torch.no_grad(),
        vtc.compress(model, name, retention=0.5, processor=processor, **options) as run,
    ):
        model(**batch)
        image = run.reports[-1].images[0]
        slot = run.compaction.slot[0].tolist()
    seen = len(places) - len(hidden)
    assert image.patches_before == seen and image.hidden == tuple(hidden)
    assert image.patches_after <= max(1, seen // 2) if name != "pool" else True
    kept = {row * 4 + col for _, row, col in image.kept}
    assert not kept & set(hidden) and not set(slot) & set(places[hidden].tolist())
    if image.merged is not None:
        assert not set(image.merged.source.tolist()) & set(hidden)
    again = vtc.Report.from_dict(run.reports[-1].to_dict()).images[0]
    assert again.counts() == image.counts() and torch.equal(again.share, image.share)


def tiny_tokenizer() -> Any:
    """Reads every text as the same three tokens."""

    class Tokenizer:
        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [5, 6, 7]}

        def decode(self, *_: Any, **__: Any) -> str:
            return "x"

    return Tokenizer()


def test_retention_one_shows_a_hidden_image_as_the_bare_model_does() -> None:
    """Bit by bit."""
    model = matrix.model_of("llava_next")
    batch = tiny.inputs("llava_next", [[tiny.A, tiny.C]], 1)
    batch["attention_mask"][0, hidden_run("llava_next", batch, 1)] = 0
    with torch.no_grad():
        plain = model(**batch).logits
        with vtc.compress(model, "uniform", retention=1.0):
            assert torch.equal(model(**batch).logits, plain)


# -- caches and what their owners do with them ----------------------------------------------------------

ASK = [torch.tensor([[11, 12, 13]]), torch.tensor([[21, 22]])]


def make(kind: str, model: nn.Module) -> Any:
    config = model.config.get_text_config()
    return (
        StaticCache(config=config, max_cache_len=160)
        if kind == "static"
        else DynamicCache(config=config)
    )


def whole_conversation(
    model: nn.Module, batch: dict[str, Any], ids: Tensor, positions: str
) -> Tensor:
    """Scores behind the batch and more text, from scratch and by hand."""
    return hand(model, longer(batch, ids), positions)[1][-1]


@pytest.mark.parametrize("mask", ["long", "none"])
@pytest.mark.parametrize("how", ["crop", "copy", "reset", "tuple"])
@POLICIES
@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl", "internvl"])
def test_many_questions_about_one_cache(family: str, positions: str, how: str, mask: str) -> None:
    """One prefill, and the cache cropped back, copied, or reset and filled again, for each."""
    model, batch = matrix.model_of(family), one(family, 1)
    length = batch["input_ids"].shape[1]
    with torch.no_grad(), vtc.compress(model, method(), positions=positions):
        held = make("dynamic", model)
        got = []
        for number, ids in enumerate(ASK):
            if number == 0 or how == "reset":
                held.reset()
                out = model(
                    **batch, use_cache=True, return_dict=how != "tuple", **{cache_name(model): held}
                )
                if how == "tuple":
                    assert any(part is held for part in out)
                filled = held.get_seq_length()
            elif how in ("crop", "tuple"):
                held.crop(filled - held.get_seq_length())
            mine = copy.deepcopy(held) if how == "copy" else held
            more = {}
            if mask == "long":
                more["attention_mask"] = torch.ones(1, length + ids.shape[1], dtype=torch.long)
            step = model(input_ids=ids, use_cache=True, **more, **{cache_name(model): mine})
            got.append(step.logits[0, -1])
    for ids, scores in zip(ASK, got, strict=True):
        torch.testing.assert_close(
            scores, whole_conversation(model, batch, ids, positions), **CLOSE
        )


@pytest.mark.parametrize("how", ["repeat", "select", "reorder"])
@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl"])
def test_rows_of_a_cache(family: str, how: str) -> None:
    """The record of what was dropped follows the rows that its owner repeats, selects or reorders."""
    model = matrix.model_of(family)
    shown = [[tiny.A], [tiny.C]]
    batch = tiny.inputs(family, shown, 1)
    order = {"repeat": [0, 0, 1, 1], "select": [1], "reorder": [1, 0]}[how]
    ids = torch.tensor([[11, 12, 13], [21, 22, 23], [31, 32, 33], [41, 42, 43]])[: len(order)]
    with torch.no_grad(), vtc.compress(model, method()):
        held = model(**batch, use_cache=True, **{cache_name(model): make("dynamic", model)})
        held = caches.found(held, {})
        if how == "repeat":
            held.batch_repeat_interleave(2)
        elif how == "select":
            held.batch_select_indices(torch.tensor(order))
        else:
            held.reorder_cache(torch.tensor(order))
        long = batch["attention_mask"][order]
        got = model(
            input_ids=ids,
            attention_mask=torch.cat([long, torch.ones_like(ids)], 1),
            **{cache_name(model): held},
        ).logits[:, -1]
    for row, scores, text in zip(order, got, ids, strict=True):
        single = tiny.alone(family, shown, row, 1)
        want = whole_conversation(model, single, text[None], "original")
        torch.testing.assert_close(scores, want, **CLOSE)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_generation_on_a_used_cache(kind: str) -> None:
    """After reset a cache is as new, with images, with text alone and without compression."""
    model = matrix.model_of("llava")
    first, second = one("llava", 1), one("llava", 2)
    ask = dict(max_new_tokens=5, do_sample=False)
    text = {"input_ids": torch.tensor([[1, 5, 6, 7]]), "attention_mask": torch.ones(1, 4).long()}
    short = by_hand.shorten(model, second, method(), "original")
    want = by_hand.generate(model, short, **ask)
    plain = [model.generate(**b, **ask) for b in (second, text)]
    for again, expected in ((second, None), (text, plain[1])):
        held = make(kind, model)
        with vtc.compress(model, method()):
            model.generate(**first, **ask, **{cache_name(model): held})
            held.reset()
            got = model.generate(**again, **ask, **{cache_name(model): held})
        if expected is None:
            assert got[0, -5:].tolist() == want
        else:
            assert torch.equal(got, expected)
    held = make(kind, model)
    with vtc.compress(model, method()):
        model.generate(**first, **ask, **{cache_name(model): held})
        held.reset()
    assert torch.equal(model.generate(**second, **ask, **{cache_name(model): held}), plain[0])


def test_a_crop_into_an_image_is_refused() -> None:
    """What is left of it cannot be continued; the error says what to do."""
    model, batch = matrix.model_of("llava"), one("llava", 1)
    with torch.no_grad(), vtc.compress(model, method()) as run:
        held = caches.found(model(**batch, use_cache=True), {})
        held.crop(-8)
        with pytest.raises(VTCError, match="cropped to .* image.*fresh"):
            model(input_ids=torch.tensor([[11]]), **{cache_name(model): held})
    assert run.reports


@pytest.mark.parametrize("given", [False, True])
def test_a_cache_pruned_by_something_else(given: bool) -> None:
    """Without positions nobody knows them; with the caller's own the call is the bare model's."""
    model, batch = matrix.model_of("llava"), one("llava", 1)
    length = batch["input_ids"].shape[1]
    step: dict[str, Any] = {"input_ids": torch.tensor([[11]])}
    if given:
        step["position_ids"] = torch.tensor([[length]])
    with torch.no_grad():
        with vtc.compress(model, method()):
            held = caches.found(model(**batch, use_cache=True), {})
            for layer in held.layers:
                layer.keys, layer.values = layer.keys[:, :, 2:], layer.values[:, :, 2:]
            twin = copy.deepcopy(held)
            caches.forget(twin)
            if not given:
                with pytest.raises(VTCError, match="taken out by hand"):
                    model(**step, **{cache_name(model): held})
                return
            got = model(**step, **{cache_name(model): held}).logits
        assert torch.equal(got, model(**step, **{cache_name(model): twin}).logits)


@pytest.mark.parametrize("name", caches.NAMES)
@pytest.mark.parametrize("entry", ["generate", "forward"])
@POLICIES
@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "internvl"])
def test_two_turns_by_either_name(family: str, positions: str, entry: str, name: str) -> None:
    """A second turn with another image, its cache handed on under the old and the new name."""
    model = matrix.model_of(family)
    first, second = one(family, 1, tiny.A), one(family, 2, tiny.C)
    pixels = [k for k in first if k.startswith(("pixel", "image"))]
    both = {k: torch.cat([first[k], second[k]], 1) for k in first if k not in pixels}
    if "pixel_values" in first and first["pixel_values"].dim() == 5:
        most = max(x["pixel_values"].shape[1] for x in (first, second))
        for x in (first, second):
            x["pixel_values"] = tiles_up_to(x["pixel_values"], most)
    both.update({k: torch.cat([first[k], second[k]]) for k in pixels})
    held = make("dynamic", model)
    with torch.no_grad(), vtc.compress(model, method(), positions=positions):
        if entry == "generate":
            ask = dict(max_new_tokens=1, do_sample=False, output_logits=True)
            model.generate(**first, **ask, **{name: held})
            fresh = {**both, **{k: second[k] for k in pixels}}
            out = model.generate(**fresh, **ask, return_dict_in_generate=True, **{name: held})
            got = out.logits[0][0]
        else:
            model(**first, use_cache=True, **{name: held})
            new = {**second, "attention_mask": both["attention_mask"]}
            got = model(**new, use_cache=True, **{name: held}).logits[0, -1]
            step = model(input_ids=torch.tensor([[11]]), **{name: held}).logits[0, -1]
    torch.testing.assert_close(got, hand(model, both, positions)[1][-1], **CLOSE)
    if entry == "forward":
        want = whole_conversation(model, both, torch.tensor([[11]]), positions)
        torch.testing.assert_close(step, want, **CLOSE)


@pytest.mark.parametrize("entry", ["generate", "forward"])
@POLICIES
@pytest.mark.parametrize("family", ["llava", "llava_next", "internvl"])
def test_behind_a_prompt_that_the_bare_model_read(family: str, positions: str, entry: str) -> None:
    """A system prompt in a cache, filled without compression, may be continued with an image."""
    model, batch = matrix.model_of(family), one(family, 1)
    system = torch.tensor([[1, 7, 8, 9, 10]])
    whole = dict(batch)
    whole["input_ids"] = torch.cat([system, batch["input_ids"]], 1)
    whole["attention_mask"] = torch.ones_like(whole["input_ids"])
    held = make("dynamic", model)
    with torch.no_grad():
        model(input_ids=system, use_cache=True, **{cache_name(model): held})
        with vtc.compress(model, method(), positions=positions):
            if entry == "forward":
                new = {**batch, "attention_mask": whole["attention_mask"]}
                got = model(**new, **{cache_name(model): held}).logits[0, -1]
            else:
                out = model.generate(
                    **whole,
                    max_new_tokens=1,
                    output_logits=True,
                    return_dict_in_generate=True,
                    **{cache_name(model): held},
                )
                got = out.logits[0][0]
    torch.testing.assert_close(got, hand(model, whole, positions)[1][-1], **CLOSE)


def test_two_caches_in_one_call_are_refused() -> None:
    """transformers would drop one of them."""
    model, batch = matrix.model_of("llava"), one("llava", 1)
    two = {name: make("dynamic", model) for name in caches.NAMES}
    with torch.no_grad(), vtc.compress(model, method()), pytest.raises(VTCError, match="cache"):
        model(**batch, **two)
