"""Models that other code has changed: subclasses, replaced forwards, PEFT and its virtual tokens."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import vtc
from tests.hf import by_hand, tiny
from tests.hf.methods import Attended, Norms
from vtc.errors import VTCError

peft = pytest.importorskip("peft")

NEW = 4
GREEDY = dict(max_new_tokens=NEW, do_sample=False)
VIRTUAL = 4


class Some(transformers.LlavaForConditionalGeneration):
    """Names some arguments and hands on the rest."""

    def forward(self, input_ids=None, pixel_values=None, attention_mask=None, **kwargs):
        return super().forward(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            **kwargs,
        )


class Star(transformers.LlavaForConditionalGeneration):
    """Hands on everything."""

    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


@pytest.fixture(params=["some", "star", "class", "instance"])
def changed(request: Any) -> Iterator[nn.Module]:
    """A model whose forward does not name what transformers hands it."""
    plain = tiny.build("llava-clip")
    if request.param in ("some", "star"):
        model = {"some": Some, "star": Star}[request.param](plain.config).eval()
        model.load_state_dict(plain.state_dict())
        model.generation_config = plain.generation_config
        yield model
        return
    cls = transformers.LlavaForConditionalGeneration
    if request.param == "class":  # as kernel libraries do
        own = cls.forward

        def replaced(self, input_ids=None, pixel_values=None, attention_mask=None, **kwargs):
            return own(
                self,
                input_ids=input_ids,
                pixel_values=pixel_values,
                attention_mask=attention_mask,
                **kwargs,
            )

        cls.forward = replaced
        try:
            yield plain
        finally:
            cls.forward = own
        return
    forward = plain.forward
    plain.forward = lambda *args, **kwargs: forward(*args, **kwargs)
    yield plain


@pytest.mark.parametrize("by_position", [False, True])
def test_forwards_that_hand_on_their_arguments(changed: nn.Module, by_position: bool) -> None:
    """They are compressed like any other, however they are called."""
    batch = tiny.inputs("llava-clip", tiny.ONE)
    (row,) = by_hand.rows(tiny.build("llava-clip"), batch, Norms(0.5))
    want = by_hand.logits(tiny.build("llava-clip"), row)
    with torch.no_grad(), vtc.compress(changed, Norms(0.5)):
        if by_position:
            ids, pixels = batch["input_ids"], batch["pixel_values"]
            got = changed(ids, pixels, attention_mask=batch["attention_mask"]).logits[0]
        else:
            got = changed(**batch).logits[0]
        tokens = changed.generate(**batch, **GREEDY)[0, -NEW:].tolist()
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    assert tokens == by_hand.greedy(tiny.build("llava-clip"), row, NEW)[0]


def hooks(model: nn.Module) -> list[str]:
    """Hooks of ours that are left, and configs and lists of layers."""
    found = []
    for name, module in model.named_modules():
        tables = module._forward_hooks, module._forward_pre_hooks
        found += [f"{name}: {h}" for t in tables for h in t.values() if "vtc" in h.__module__]
        held = vars(module)
        found += [f"{name}.{k}" for k in held if k.startswith("_vtc")]
        if "vtc" in type(module).__module__ or hasattr(held.get("config"), "vtc_config"):
            found.append(name)
    return found


@pytest.mark.parametrize("patch_first", [False, True])
@pytest.mark.parametrize("saved", ["multi_modal_projector", "vision_tower"])
@pytest.mark.parametrize("family", ["llava-clip", "next-clip"])
def test_modules_that_peft_copies(family: str, saved: str, patch_first: bool) -> None:
    """`modules_to_save` copies a module with our hooks on it; they come off the copies as well."""
    batch = tiny.inputs(family, tiny.ONE)
    config = peft.LoraConfig(
        target_modules=["q_proj", "v_proj"], modules_to_save=[saved], init_lora_weights=False
    )
    config.exclude_modules = ".*vision_tower.*"
    model = tiny.build(family)
    torch.manual_seed(0)
    if patch_first:
        handle = vtc.apply(model, Attended(0.5))
        wrapped = peft.get_peft_model(model, config).eval()
    else:
        wrapped = peft.get_peft_model(model, config).eval()
        handle = vtc.apply(wrapped, Attended(0.5))
    with torch.no_grad():
        got = wrapped(**batch).logits
        handle.remove()
        assert hooks(wrapped) == []
        bare = wrapped(**batch).logits
        with vtc.compress(wrapped, Attended(0.5)):
            assert torch.equal(wrapped(**batch).logits, got)
        assert torch.equal(wrapped(**batch).logits, bare)
        merged = wrapped.merge_and_unload()
        with vtc.compress(merged, Attended(0.5)):
            torch.testing.assert_close(merged(**batch).logits, got, atol=1e-3, rtol=1e-3)
    assert hooks(merged) == []


def with_virtual(model: nn.Module, kind: str) -> Any:
    """Prefix or prompt tuning with tokens that matter."""
    text = model.config.text_config
    width = text.hidden_size
    if kind == "prefix":
        width = width // text.num_attention_heads * text.num_key_value_heads
    make = {"prefix": peft.PrefixTuningConfig, "prompt": peft.PromptTuningConfig}[kind]
    config = make(
        task_type=peft.TaskType.CAUSAL_LM,
        num_virtual_tokens=VIRTUAL,
        num_layers=text.num_hidden_layers,
        num_attention_heads=text.num_key_value_heads,
        token_dim=width,
    )
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(model, config).eval()
    nn.init.normal_(next(iter(wrapped.prompt_encoder.parameters())), std=1.0)
    return wrapped


def virtual_by_hand(wrapped: Any, model: nn.Module, kind: str, row: by_hand.Row) -> Tensor:
    """Scores behind the virtual tokens and a short prompt, from the language model alone."""
    embeds = row.embeds[None]
    positions = torch.tensor([row.positions]) + VIRTUAL
    language = model.model.language_model
    prompts = wrapped.get_prompt(1)
    if kind == "prompt":
        embeds = torch.cat([prompts.to(embeds), embeds], 1)
        positions = torch.cat([torch.arange(VIRTUAL)[None], positions], 1)
        cache: dict[str, Any] = {}
    else:
        from vtc.plugins.hf.cache import name

        cache = {name(language): prompts}
    mask = torch.ones(1, VIRTUAL + len(row.ids), dtype=torch.long)
    out = language(inputs_embeds=embeds, position_ids=positions, attention_mask=mask, **cache)
    return model.lm_head(out.last_hidden_state)[0, -len(row.ids) :]


def generates_as_forward(wrapped: Any, batch: dict[str, Any]) -> bool:
    """Whether two steps of the bare model's `generate` have the logits of its forward.

    PEFT 0.21 knows no cache by the name that transformers 5.24 gives it.
    """
    two = wrapped.generate(
        **batch,
        max_new_tokens=2,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        suppress_tokens=[tiny.IMAGE],
    )
    longer = {**batch, "input_ids": two.sequences[:, :-1]}
    longer["attention_mask"] = torch.ones_like(longer["input_ids"])
    want = wrapped(**longer).logits[0, -2:]
    return all(
        torch.allclose(got[0], row, atol=2e-4) for got, row in zip(two.logits, want, strict=True)
    )


@pytest.mark.parametrize("positions", ["original", "contiguous"])
@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_virtual_tokens_in_front(kind: str, positions: str) -> None:
    """PEFT's prefix and prompt tuning: the short prompt behind them, in forward and in generate."""
    model = tiny.build("llava-clip")
    batch = tiny.inputs("llava-clip", tiny.ONE)
    (row,) = by_hand.rows(model, batch, Norms(0.5), positions)
    wrapped = with_virtual(model, kind)
    with torch.no_grad():
        if not generates_as_forward(wrapped, batch):
            pytest.skip("upstream: PEFT's generate gives other logits than its forward")
        want = virtual_by_hand(wrapped, model, kind, row)
        plain = wrapped(**batch).logits
        ask = dict(
            max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        with vtc.compress(wrapped, Norms(0.5), positions=positions):
            got = wrapped(**batch).logits[0, -len(want) :]
            first = wrapped.generate(**batch, **ask).logits[0][0]
            two = wrapped.generate(
                **batch,
                max_new_tokens=2,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
                suppress_tokens=[tiny.IMAGE],
            )
        torch.testing.assert_close(got, want, atol=2e-4, rtol=2e-4)
        torch.testing.assert_close(first, want[-1], atol=2e-4, rtol=2e-4)
        # the second token, from scratch
        token = int(two.sequences[0, -2])
        longer = copy.copy(row)
        longer.ids = [*row.ids, token]
        longer.embeds = torch.cat([row.embeds, model.get_input_embeddings()(torch.tensor([token]))])
        longer.positions = [*row.positions, max(row.positions) + 1]
        step = virtual_by_hand(wrapped, model, kind, longer)[-1]
        torch.testing.assert_close(two.logits[1][0], step, atol=2e-4, rtol=2e-4)
        with vtc.compress(wrapped, Norms(1.0)):
            assert torch.equal(wrapped(**batch).logits, plain)


@pytest.mark.parametrize("entry", ["forward", "generate"])
@pytest.mark.parametrize("family", ["llava-clip", "next-clip"])
def test_no_images(family: str, entry: str) -> None:
    """Pixels of zero images are none: whatever the bare model does with them."""
    model, batch = tiny.build(family), tiny.inputs(family, tiny.ONE)
    text = dict(input_ids=torch.tensor([[1, 5, 6, 7]]), attention_mask=torch.ones(1, 4).long())
    none = {k: v[:0] for k, v in batch.items() if k not in text}

    def call() -> Any:
        try:
            with torch.no_grad():
                if entry == "forward":
                    return model(**text, **none).logits
                return model.generate(**text, **none, **GREEDY)
        except Exception as error:  # noqa: BLE001
            return type(error), str(error)

    bare = call()
    with vtc.compress(model, Norms(0.5)) as run:
        got = call()
    assert run.reports == []
    assert torch.equal(got, bare) if isinstance(bare, Tensor) else got == bare


def test_generate_takes_the_whole_conversation() -> None:
    """A prompt that is shorter than the cache is refused in the caller's words."""
    model, batch = tiny.build("llava-clip"), tiny.inputs("llava-clip", tiny.ONE)
    cache = transformers.DynamicCache(config=model.config.get_text_config())
    with vtc.compress(model, Norms(0.5)):
        model.generate(**batch, **GREEDY, past_key_values=cache)
        with pytest.raises(VTCError, match="input_ids: got 3 columns.*whole conversation"):
            model.generate(torch.tensor([[5, 6, 7]]), **GREEDY, past_key_values=cache)
