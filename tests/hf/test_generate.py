"""Every way to call `generate` works under compression."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache, GenerationConfig

import vtc
from tests.device import DEVICE
from tests.hf import by_hand, tiny
from tests.hf.methods import KINDS, Norms, Ragged

NEW = 6
GREEDY = dict(max_new_tokens=NEW, do_sample=False)
POLICIES = pytest.mark.parametrize("positions", ["original", "contiguous"])
FAMILIES = pytest.mark.parametrize("family", tiny.FAMILIES)

#: modes that an unpatched model can run from the embeddings of the short prompt
MODES: dict[str, dict[str, Any]] = {
    "sampling": dict(max_new_tokens=NEW, do_sample=True, top_k=20, temperature=0.8),
    "samples": dict(max_new_tokens=NEW, do_sample=True, num_return_sequences=3),
    "beams": dict(max_new_tokens=NEW, num_beams=3, do_sample=False),
    "beams-returned": dict(
        max_new_tokens=NEW, num_beams=4, num_return_sequences=2, do_sample=False, length_penalty=0.5
    ),
    "beam-sampling": dict(max_new_tokens=NEW, num_beams=3, do_sample=True),
    "static": dict(GREEDY, cache_implementation="static"),
}


@POLICIES
@pytest.mark.parametrize("mode", MODES)
@FAMILIES
def test_modes_equal_generating_from_the_short_prompt(
    family: str, mode: str, positions: str
) -> None:
    """Sampling, beams and static caches, a ragged batch, with scores."""
    model, batch = tiny.build(family), tiny.inputs(family, tiny.MIXED)
    ask = dict(MODES[mode], output_scores=True, return_dict_in_generate=True)
    with torch.no_grad():
        short = by_hand.padded(by_hand.rows(model, batch, Ragged(), positions))
    torch.manual_seed(5)
    expected = model.generate(**short, **ask)
    torch.manual_seed(5)
    with vtc.compress(model, Ragged(), positions=positions):
        out = model.generate(**batch, **ask)
    length, copies = batch["input_ids"].shape[1], ask.get("num_return_sequences", 1)
    assert torch.equal(out.sequences[:, length:], expected.sequences)
    assert torch.equal(out.sequences[:, :length], batch["input_ids"].repeat_interleave(copies, 0))
    if ask.get("num_beams", 1) > 1:
        torch.testing.assert_close(
            out.sequences_scores, expected.sequences_scores, atol=1e-4, rtol=1e-4
        )
    else:
        for got, want in zip(out.scores, expected.scores, strict=True):
            torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-3)


@POLICIES
@pytest.mark.parametrize("kind", ["norms", "backwards"])
@FAMILIES
def test_without_a_cache(family: str, kind: str, positions: str) -> None:
    """`use_cache=False` feeds the whole short prompt at each step, gaps and all."""
    model, batch = tiny.build(family), tiny.inputs(family, tiny.MIXED)
    short = by_hand.rows(model, batch, KINDS[kind], positions)
    with vtc.compress(model, KINDS[kind], positions=positions):
        out = model.generate(**batch, **GREEDY, use_cache=False)
        single = model.generate(**tiny.row(batch, tiny.MIXED, 2), **GREEDY, use_cache=False)
    for row, got in zip(short, out, strict=True):
        assert got[-NEW:].tolist() == by_hand.greedy(model, row, NEW)[0]
    assert single[0, -NEW:].tolist() == out[2, -NEW:].tolist()


@POLICIES
@pytest.mark.parametrize("chunk", [1, 5, 16])
@FAMILIES
def test_chunked_prefill(family: str, chunk: int, positions: str) -> None:
    """The short prompt may be read in chunks that cut images."""
    model, batch = tiny.build(family), tiny.inputs(family, tiny.MIXED)
    bare = model.generate(**batch, **GREEDY)
    if not torch.equal(model.generate(**batch, **GREEDY, prefill_chunk_size=chunk), bare):
        pytest.skip("upstream: an older transformers gives other tokens than without chunks")
    with vtc.compress(model, Ragged(), positions=positions):
        expected = model.generate(**batch, **GREEDY)
        assert torch.equal(model.generate(**batch, **GREEDY, prefill_chunk_size=chunk), expected)


@POLICIES
@FAMILIES
def test_assisted_decoding(family: str, positions: str) -> None:
    """An assistant model and prompt look-up change the speed, not the tokens."""
    model, assistant = tiny.build(family), tiny.build(family, seed=1)
    batch = tiny.inputs(family, [[(40, 60), (70, 20)]])
    (row,) = by_hand.rows(model, batch, Norms(0.5), positions)
    expected = by_hand.greedy(model, row, 12)[0]
    with vtc.compress(model, Norms(0.5), positions=positions):
        for help_ in ({"assistant_model": assistant}, {"prompt_lookup_num_tokens": 3}):
            out = model.generate(**batch, **{**GREEDY, "max_new_tokens": 12}, **help_)
            assert out[0, -12:].tolist() == expected
            assert torch.equal(out[:, :-12], batch["input_ids"])
        with vtc.compress(assistant, Norms(0.25), positions=positions):
            out = model.generate(
                **batch, max_new_tokens=12, do_sample=False, assistant_model=assistant
            )
            assert out[0, -12:].tolist() == expected, "a compressed assistant"


@FAMILIES
def test_penalties_read_the_short_prompt(family: str) -> None:
    """Repetition penalties equal those of the bare model on the short ids; rows stay apart."""
    model, batch = tiny.build(family), tiny.inputs(family, tiny.MIXED)
    ask = dict(GREEDY, repetition_penalty=1.5, no_repeat_ngram_size=2)
    ask["suppress_tokens"] = [tiny.IMAGE, tiny.PAD]  # older versions count padding as said before
    with vtc.compress(model, Norms(0.5)):
        out = model.generate(**batch, **ask)
        for i in range(len(tiny.MIXED)):
            single = model.generate(**tiny.row(batch, tiny.MIXED, i), **ask)
            assert single[0, -NEW:].tolist() == out[i, -NEW:].tolist()
    (row,) = by_hand.rows(model, tiny.row(batch, tiny.MIXED, 0), Norms(0.5))
    features = model.get_image_features(
        **{
            k: v
            for k, v in tiny.row(batch, tiny.MIXED, 0).items()
            if k.startswith(("pix", "image"))
        }
    )
    features.pooler_output = (
        [torch.cat(row.features)] if family != "vipllava" else torch.cat(row.features)[None]
    )
    expected = model.generate(
        input_ids=torch.tensor([row.ids], device=DEVICE),
        attention_mask=torch.ones(1, len(row.ids), dtype=torch.long, device=DEVICE),
        position_ids=torch.tensor([row.positions], device=DEVICE),
        mm_encoder_outputs={"image": features},
        **ask,
    )
    assert expected[0, -NEW:].tolist() == out[0, -NEW:].tolist()


def _new_tokens(model: torch.nn.Module, batch: dict[str, Any], **ask: Any) -> int:
    return model.generate(**batch, do_sample=False, **ask).shape[1] - batch["input_ids"].shape[1]


@pytest.mark.parametrize("where", ["kwarg", "object", "model", "model-beside-object"])
def test_max_length_counts_the_users_prompt(where: str) -> None:
    """`max_length` leaves room for as many new tokens as it does without compression."""
    model, batch = tiny.build("next-clip"), tiny.inputs("next-clip", tiny.MIXED)
    total = batch["input_ids"].shape[1] + 4
    ask: dict[str, Any] = {}
    if where == "kwarg":
        ask["max_length"] = total
    elif where == "object":
        ask["generation_config"] = GenerationConfig(max_length=total, suppress_tokens=[tiny.IMAGE])
    else:
        model.generation_config.max_length = total
    if where == "model-beside-object":
        ask["generation_config"] = GenerationConfig(suppress_tokens=[tiny.IMAGE])
    assert _new_tokens(model, batch, **ask) == 4
    config = ask.get("generation_config")
    before = config.to_dict() if config else None
    with vtc.compress(model, Norms(0.5)):
        assert _new_tokens(model, batch, **ask) == 4
        assert _new_tokens(model, tiny.row(batch, tiny.MIXED, 1), max_new_tokens=3) == 3
    assert config is None or config.to_dict() == before
    assert model.generation_config.max_length == (total if where.startswith("model") else None)


@pytest.mark.parametrize("where", ["model", "object"])
def test_max_new_tokens_wins_over_max_length(where: str) -> None:
    """`max_new_tokens` in the call or in a config is untouched by the translation."""
    model, batch = tiny.build("llava-clip"), tiny.inputs("llava-clip", tiny.ONE)
    ask: dict[str, Any] = {"max_length": batch["input_ids"].shape[1] + 9}
    if where == "model":
        model.generation_config.max_new_tokens = 3
    else:
        ask["generation_config"] = GenerationConfig(max_new_tokens=3, suppress_tokens=[tiny.IMAGE])
    plain = _new_tokens(model, batch, **ask)
    with vtc.compress(model, Norms(0.5)):
        assert _new_tokens(model, batch, **ask) == plain


@pytest.mark.parametrize("where", ["kwarg", "object", "model"])
def test_min_length_counts_the_users_prompt(where: str) -> None:
    """An end token is held back for as long as without compression."""
    model, batch = tiny.build("next-clip"), tiny.inputs("next-clip", tiny.ONE)
    with vtc.compress(model, Norms(0.5)):
        first = int(model.generate(**batch, max_new_tokens=1, do_sample=False)[0, -1])
    model.generation_config.eos_token_id = first
    low = batch["input_ids"].shape[1] + 4
    settings = dict(min_length=low, max_new_tokens=9, eos_token_id=first)
    ask: dict[str, Any] = {}
    if where == "kwarg":
        ask = settings
    elif where == "object":
        ask["generation_config"] = GenerationConfig(**settings, suppress_tokens=[tiny.IMAGE])
    else:
        model.generation_config.min_length, ask["max_new_tokens"] = low, 9
    with vtc.compress(model, Norms(0.5)):
        out = model.generate(**batch, do_sample=False, **ask)
        same = model.generate(
            **batch, do_sample=False, max_new_tokens=9, min_length=0, min_new_tokens=4
        )
        model.generation_config.min_length = None
        assert _new_tokens(model, batch, max_new_tokens=9) == 1
    assert out.shape[1] >= low and torch.equal(out, same)


def test_default_length_is_unchanged() -> None:
    """Without any length the number of new tokens is that of the bare model."""
    model, batch = tiny.build("llava-clip"), tiny.inputs("llava-clip", tiny.ONE)
    plain = _new_tokens(model, batch)
    with vtc.compress(model, Norms(0.5)):
        assert _new_tokens(model, batch) == plain


class _Listener:
    """A streamer that keeps what it is given."""

    def __init__(self) -> None:
        self.heard: list[torch.Tensor] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.heard.append(value.flatten())

    def end(self) -> None:
        self.ended = True


@FAMILIES
def test_streamer_hears_the_new_tokens(family: str) -> None:
    """What is streamed behind the prompt is what is returned behind the prompt."""
    model, batch, streamer = tiny.build(family), tiny.inputs(family, tiny.ONE), _Listener()
    with vtc.compress(model, Norms(0.5)):
        out = model.generate(**batch, **GREEDY, streamer=streamer)
    assert torch.cat(streamer.heard[1:]).tolist() == out[0, -NEW:].tolist() and streamer.ended


@FAMILIES
def test_ids_by_position_or_by_name(family: str) -> None:
    """`generate(ids)`, `generate(inputs=ids)` and `model(ids, pixels)` are the keyword calls."""
    model, batch = tiny.build(family), tiny.inputs(family, tiny.ONE)
    with torch.no_grad(), vtc.compress(model, Norms(0.5)):
        expected, logits = model.generate(**batch, **GREEDY), model(**batch).logits
        ids = batch.pop("input_ids")
        assert torch.equal(model.generate(ids, **batch, **GREEDY), expected)
        assert torch.equal(model.generate(inputs=ids, **batch, **GREEDY), expected)
        config = GenerationConfig(**GREEDY, suppress_tokens=[tiny.IMAGE])
        assert torch.equal(model.generate(ids, config, **batch), expected)
        pixels = batch.pop("pixel_values")
        assert torch.equal(model(ids, pixels, **batch).logits, logits)


@POLICIES
@FAMILIES
def test_embeddings_instead_of_ids(family: str, positions: str) -> None:
    """`inputs_embeds` give the tokens that the ids give; without ids there is no prompt to return."""
    model, batch = tiny.build(family), tiny.inputs(family, tiny.MIXED)
    with torch.no_grad(), vtc.compress(model, Ragged(), positions=positions):
        expected, logits = model.generate(**batch, **GREEDY), model(**batch).logits
        ids = batch.pop("input_ids")
        embeds = model.get_input_embeddings()(ids)
        out = model.generate(inputs_embeds=embeds, **batch, **GREEDY)
        assert torch.equal(out, expected[:, -NEW:])
        # in the padding the embeddings may differ
        got = model(inputs_embeds=embeds, **batch).logits
        torch.testing.assert_close(got[:, -4:], logits[:, -4:], atol=1e-5, rtol=1e-5)


@FAMILIES
def test_text_only_calls_pass_through(family: str) -> None:
    """Calls without pixels keep every bit and leave no report."""
    model = tiny.build(family)
    ids = torch.randint(3, tiny.IMAGE, (2, 9), generator=torch.Generator().manual_seed(3)).to(
        DEVICE
    )
    with torch.no_grad():
        logits, tokens = model(ids).logits, model.generate(ids, **GREEDY)
        with vtc.compress(model, Norms(0.5)) as run:
            assert torch.equal(model(ids).logits, logits)
            assert torch.equal(model.generate(ids, **GREEDY), tokens)
    assert run.reports == []


@POLICIES
def test_users_own_positions_are_kept(positions: str) -> None:
    """Positions that the user gives are gathered under "original" and replaced under "contiguous"."""
    model, batch = tiny.build("next-clip"), tiny.inputs("next-clip", tiny.ONE)
    length = batch["input_ids"].shape[1]
    mine = torch.arange(length, device=DEVICE)[None] * 2 + 5
    (row,) = by_hand.rows(model, batch, Norms(0.5), positions)
    if positions == "original":
        row.positions = [2 * p + 5 for p in row.positions]
    with torch.no_grad(), vtc.compress(model, Norms(0.5), positions=positions):
        out = model.generate(**batch, position_ids=mine, **GREEDY)
        logits = model(**batch, position_ids=mine).logits[0]
    assert out[0, -NEW:].tolist() == by_hand.greedy(model, row, NEW)[0]
    torch.testing.assert_close(logits, by_hand.logits(model, row), atol=1e-4, rtol=1e-4)


@FAMILIES
def test_users_own_cache_object(family: str) -> None:
    """A cache passed in is filled with the short prompt."""
    model, batch = tiny.build(family), tiny.inputs(family, tiny.ONE)
    (row,) = by_hand.rows(model, batch, Norms(0.5))
    cache = DynamicCache(config=model.config.get_text_config())
    with vtc.compress(model, Norms(0.5)):
        out = model.generate(**batch, **GREEDY, past_key_values=cache)
    assert out[0, -NEW:].tolist() == by_hand.greedy(model, row, NEW)[0]
    assert cache.get_seq_length() == len(row.ids) + NEW - 1


def test_generate_that_the_instance_already_had() -> None:
    """An instance's own `generate` is called under the patch and is back after it."""
    model, batch = tiny.build("llava-clip"), tiny.inputs("llava-clip", tiny.ONE)
    with vtc.compress(model, Norms(0.5)):
        expected = model.generate(**batch, **GREEDY)
    calls: list[Any] = []
    original = model.generate

    def mine(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs)
        return original(*args, **{**GREEDY, **kwargs})

    model.generate = mine
    with vtc.compress(model, Norms(0.5)):
        assert torch.equal(model.generate(**batch), expected)
    assert len(calls) == 1 and model.generate is mine


def test_hidden_states_have_the_short_length() -> None:
    """`output_hidden_states` come back in the coordinates of the short prompt."""
    model, batch = tiny.build("next-clip"), tiny.inputs("next-clip", tiny.ONE)
    (row,) = by_hand.rows(model, batch, Norms(0.5))
    with torch.no_grad(), vtc.compress(model, Norms(0.5)):
        out = model(**batch, output_hidden_states=True)
        gen = model.generate(
            **batch, **GREEDY, output_hidden_states=True, return_dict_in_generate=True
        )
    assert {h.shape[1] for h in (*out.hidden_states, *gen.hidden_states[0])} == {len(row.ids)}


@pytest.mark.parametrize("entry", ["forward", "generate"])
@pytest.mark.parametrize("kind", ["norms", "backwards"])
def test_the_way_back_to_the_callers_prompt(kind: str, entry: str) -> None:
    """`compaction` says of every short place which column it stands for and which gives its position."""
    model, batch = tiny.build("next-clip"), tiny.inputs("next-clip", tiny.MIXED)
    with torch.no_grad(), vtc.compress(model, KINDS[kind]) as run:
        assert run.compaction is None
        model(**batch) if entry == "forward" else model.generate(**batch, max_new_tokens=1)
        way = run.compaction
        for index, row in enumerate(by_hand.rows(model, batch, KINDS[kind])):
            real = way.valid[index]
            assert way.slot[index][real].tolist() == row.columns
            count = batch["attention_mask"][index].cumsum(0) - 1
            assert count[way.position[index][real]].tolist() == row.positions
        with vtc.compress(model, "none") as whole:
            model(**batch)
            assert whole.compaction is None
