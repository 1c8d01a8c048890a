"""Wrong input gives `VTCError` and leaves the model as it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

import vtc
from tests.hf import tiny
from tests.hf.methods import Attended, Breaks, Guided, Norms, Ragged, Spy
from vtc import VTCError
from vtc.methods.base import Method
from vtc.plugins.hf.adapters import Adapter
from vtc.tokens import CompressedTokens, VisualTokens, keep_patches

GREEDY = dict(max_new_tokens=3, do_sample=False)


@dataclass
class Wrong(Method):
    """Returns something that does not fit: half of each tile, changed by `change`."""

    change: Any = None

    name: ClassVar[str] = "wrong"

    def compress(self, tokens: VisualTokens) -> CompressedTokens:
        keep = tokens.valid & (tokens.valid.cumsum(1) <= tokens.valid.sum(1, keepdim=True) // 2)
        return self.change(keep_patches(tokens, keep))


BAD_APPLY: dict[str, tuple[str, Callable[[nn.Module], Any]]] = {
    "unknown method": ("nnone|available", lambda m: vtc.apply(m, "nnone")),
    "unknown option": ("retentoin.*retention", lambda m: vtc.apply(m, "none", retentoin=0.5)),
    "option beside an instance": ("retention", lambda m: vtc.apply(m, Norms(), retention=0.5)),
    "option beside a config": (
        "retention",
        lambda m: vtc.apply(m, vtc.CompressionConfig(), retention=0.5),
    ),
    "method of another type": ("method: got int", lambda m: vtc.apply(m, 7)),
    "method class": ("method: got type|ABCMeta", lambda m: vtc.apply(m, Norms)),
    "no method": ("method: got NoneType", lambda m: vtc.apply(m, None)),
    "retention zero": ("retention", lambda m: vtc.apply(m, "none", retention=0)),
    "retention above one": ("retention", lambda m: vtc.apply(m, "none", retention=1.5)),
    "retention a text": ("retention", lambda m: vtc.apply(m, "none", retention="half")),
    "retention nan": ("retention", lambda m: vtc.apply(m, "none", retention=float("nan"))),
    "retention beside tokens": ("tokens", lambda m: vtc.apply(m, "none", retention=0.5, tokens=3)),
    "tokens zero": ("tokens", lambda m: vtc.apply(m, "none", tokens=0)),
    "positions": ("orignal", lambda m: vtc.apply(m, Norms(), positions="orignal")),
    "positions of another type": ("positions", lambda m: vtc.apply(m, Norms(), positions=3)),
    "signal": ("cls_logit'", lambda m: vtc.apply(m, Spy(wanted=["cls_logit"]))),
    "layer": ("layer: got 9", lambda m: vtc.apply(m, Attended(layer=9))),
    "negative layer": ("layer: got -5", lambda m: vtc.apply(m, Attended(layer=-5))),
    "fraction of a layer": ("layer: got 1.5", lambda m: vtc.apply(m, Attended(layer=1.5))),
    "text encoder missing": ("text_encoder", lambda m: vtc.apply(m, Guided())),
    "text encoder a number": ("text_encoder", lambda m: vtc.apply(m, Guided(text_encoder=5))),
    "text encoder not there": (
        "text_encoder",
        lambda m: vtc.apply(m, Guided(text_encoder="/nowhere/at/all")),
    ),
    "processor missing": (
        "processor",
        lambda m: vtc.apply(m, Guided(text_encoder=(len, len))),
    ),
    "processor that is none": (
        "processor: got object",
        lambda m: vtc.apply(m, Guided(text_encoder=(len, len)), processor=object()),
    ),
    "apply on a class": ("model", lambda m: vtc.apply(type(m), Norms())),
    "apply on a text": ("model: got str", lambda m: vtc.apply("model", Norms())),
    "remove from a text": ("model: got str", lambda m: vtc.remove("model")),
    "apply on DataParallel": (
        "DataParallel, a wrapper; give the model itself, its .module",
        lambda m: vtc.apply(nn.DataParallel(m), Norms()),
    ),
    "a name for a config": ("config: got 'none'", lambda m: vtc.apply_from_config(m, "none")),
    "apply on a part": ("CLIPVisionModel", lambda m: vtc.apply(m.model.vision_tower, Norms())),
}


@pytest.mark.parametrize("case", BAD_APPLY)
@pytest.mark.parametrize("patched", [False, True], ids=["bare", "patched"])
def test_wrong_apply(case: str, patched: bool) -> None:
    """The error names what was given; a bare model stays bare, a patched one stays patched."""
    model, batch = tiny.build("llava-clip"), tiny.inputs("llava-clip", tiny.ONE)
    if patched:
        vtc.apply(model, Norms(0.5))
    out = model.generate(**batch, **GREEDY)
    before = tiny.snapshot(model)
    message, call = BAD_APPLY[case]
    with pytest.raises(VTCError, match=message):
        call(model)
    assert tiny.snapshot(model) == before
    assert torch.equal(model.generate(**batch, **GREEDY), out)


def test_a_compiled_model_is_a_wrapper() -> None:
    model = tiny.build("llava-clip")
    with pytest.raises(VTCError, match="OptimizedModule, a wrapper; .*itself, its ._orig_mod"):
        vtc.apply(torch.compile(model), Norms())
    assert not hasattr(model, "_vtc")


@pytest.mark.parametrize("part", ["attention", "projector"])
@pytest.mark.parametrize("patched", [False, True], ids=["bare", "patched"])
def test_parts_that_are_not_found(patched: bool, part: str, monkeypatch: Any) -> None:
    """A part missing deep in the model is noticed before anything is changed."""
    model, batch = tiny.build("llava-clip"), tiny.inputs("llava-clip", tiny.ONE)
    handle = vtc.apply(model, Attended(0.5)) if patched else None
    out = model.generate(**batch, **GREEDY)
    before, found = tiny.snapshot(model), getattr(Adapter, part)

    def missing(self: Adapter, base: nn.Module, layer: int = 3, modality: str = "image") -> Any:
        if layer == 3:  # the last
            raise VTCError(f"model: no {part} found")
        return found(self, base, layer, modality)

    with monkeypatch.context() as patching:
        patching.setattr(Adapter, part, missing)
        with pytest.raises(VTCError, match=f"no {part} found"):
            vtc.apply(model, "token_correlation", retention=0.5)
    assert tiny.snapshot(model) == before
    assert handle is None or handle.active
    assert torch.equal(model.generate(**batch, **GREEDY), out)


def test_classes_that_are_not_supported() -> None:
    """The error names the class and what is supported."""
    sizes = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    text = LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes))
    with pytest.raises(VTCError, match="LlamaForCausalLM.*LlavaForConditionalGeneration"):
        vtc.apply(text, Norms())
    with pytest.raises(VTCError, match="Linear"):
        vtc.apply(nn.Linear(2, 2), Norms())
    vtc.remove(text)
    assert "_vtc" not in vars(text)


def test_signals_that_the_tower_cannot_give() -> None:
    """A method that needs a CLS token does not go on a SigLIP tower."""
    model = tiny.build("next-siglip")
    before = tiny.snapshot(model)

    @dataclass
    class NeedsQuery(Norms):
        name: ClassVar[str] = "needs-query"
        signals: ClassVar[tuple[str, ...]] = ("cls_query",)

    with pytest.raises(VTCError, match="cls_query.*no CLS token"):
        vtc.apply(model, NeedsQuery())
    assert tiny.snapshot(model) == before


def test_towers_that_cannot_be_compressed() -> None:
    """CLS among the patches is refused at once."""
    model = tiny.build("llava-clip", vision_feature_select_strategy="full")
    before = tiny.snapshot(model)
    with pytest.raises(VTCError, match="vision_feature_select_strategy"):
        vtc.apply(model, Norms())
    assert tiny.snapshot(model) == before


def _drop_placeholder(batch: dict[str, Any]) -> None:
    where = (batch["input_ids"][0] == tiny.IMAGE).nonzero()[0]
    batch["input_ids"][0, where] = 5


def _mask_4d(batch: dict[str, Any]) -> None:
    length = batch["input_ids"].shape[1]
    batch["attention_mask"] = torch.ones(len(batch["input_ids"]), 1, length, length)


def _short_mask(batch: dict[str, Any]) -> None:
    batch["attention_mask"] = batch["attention_mask"][:, :-1]


def _no_ids(batch: dict[str, Any]) -> None:
    del batch["input_ids"]


def _mask_on_image(batch: dict[str, Any]) -> None:
    where = (batch["input_ids"][0] == tiny.IMAGE).nonzero()[0]
    batch["attention_mask"][0, : int(where) + 1] = 0


BAD_CALL: dict[str, tuple[str, Method, Callable[[dict[str, Any]], None]]] = {
    "placeholder missing": ("placeholders", Norms(0.5), _drop_placeholder),
    "mask of four dimensions": ("attention_mask: got 4", Norms(0.5), _mask_4d),
    "mask of another length": ("attention_mask: got shape", Norms(0.5), _short_mask),
    "no ids": ("input_ids", Norms(0.5), _no_ids),
    "too few retentions": ("retention: got 1 values", Norms([0.5]), lambda b: None),
    "too many retentions": ("retention: got 9 values", Norms([0.5] * 9), lambda b: None),
    "too few token counts": ("tokens: got 1 values", Norms(tokens=[5]), lambda b: None),
    "more tokens than there are": (
        "tokens: got 999, but the image has",
        Norms(tokens=999, strict=True),
        lambda b: None,
    ),
    "more tokens than asked for": (
        "method 'wrong' returned .* patch tokens for an image with .* its budget is 1",
        Wrong(tokens=1, change=lambda o: o),
        lambda b: None,
    ),
    "method that raises": ("on purpose", Breaks(0.5, good=1), lambda b: None),
    "no token left": (
        "no patch token",
        Wrong(0.5, change=lambda o: o.replace(patch=torch.full_like(o.patch, -1))),
        lambda b: None,
    ),
    "anchor outside": (
        "anchor outside",
        Wrong(0.5, change=lambda o: o.replace(anchor=o.anchor + 999)),
        lambda b: None,
    ),
    "features of another type": (
        "float64 features",
        Wrong(0.5, change=lambda o: o.replace(features=o.features.double())),
        lambda b: None,
    ),
    "projected to another width": (
        "projected features of width 7, the language model reads",
        Wrong(0.5, change=lambda o: o.replace(features=o.features[:, :7], projected=True)),
        lambda b: None,
    ),
    "fields of another length": (
        "tile of shape",
        Wrong(0.5, change=lambda o: o.replace(tile=o.tile[:-1])),
        lambda b: None,
    ),
}


@pytest.mark.parametrize("entry", ["forward", "generate"])
@pytest.mark.parametrize("case", BAD_CALL)
@pytest.mark.parametrize("family", ["llava-siglip", "next-clip", "vipllava"])
def test_wrong_call(family: str, case: str, entry: str) -> None:
    """The call fails with one clear error, the patch stays usable, removal restores the model."""
    message, method, spoil = BAD_CALL[case]
    model, batch = tiny.build(family), tiny.inputs(family, tiny.MIXED)
    with torch.no_grad():
        plain = model(**batch).logits
        before = tiny.snapshot(model)
        bad = {key: value.clone() for key, value in batch.items()}
        spoil(bad)
        handle = vtc.apply(model, method)
        with pytest.raises(VTCError, match=message):
            model(**bad) if entry == "forward" else model.generate(**bad, **GREEDY)
        assert handle.active
        text = torch.tensor([[1, 5, 6, 7]])
        model.generate(text, **GREEDY)
        handle.remove()
        assert tiny.snapshot(model) == before
        assert torch.equal(model(**batch).logits, plain)
        with vtc.compress(model, Norms(0.5)):
            model.generate(**batch, **GREEDY)


def test_image_sizes_missing() -> None:
    """LLaVA-NeXT without `image_sizes`: an error that names them, nothing half done."""
    model, batch = tiny.build("next-clip"), tiny.inputs("next-clip", tiny.ONE)
    del batch["image_sizes"]
    model(**tiny.inputs("next-clip", tiny.ONE))
    before = tiny.snapshot(model)
    with vtc.compress(model, Norms(0.5)):
        for call in (model, model.generate):
            with pytest.raises(VTCError, match="image_sizes"):
                call(**batch)
    assert tiny.snapshot(model) == before


def test_image_sizes_as_a_list() -> None:
    """What transformers takes, a list of sizes, is taken."""
    model, batch = tiny.build("next-clip"), tiny.inputs("next-clip", tiny.ONE)
    with torch.no_grad(), vtc.compress(model, Norms(0.5)):
        expected = model(**batch).logits
        batch["image_sizes"] = batch["image_sizes"].tolist()
        assert torch.equal(model(**batch).logits, expected)


def test_text_guided_method_without_ids() -> None:
    """Embeddings hold no text to read: the error says to pass a fixed question."""
    model, batch = tiny.build("llava-clip"), tiny.inputs("llava-clip", tiny.ONE)

    class Words:
        def decode(self, ids: Any, **_: Any) -> str:
            return "USER: what? ASSISTANT:"

    encoder = (lambda text: torch.ones(32), lambda hidden: hidden)
    embeds = model.get_input_embeddings()(batch.pop("input_ids"))
    with vtc.compress(model, Guided(0.5, text_encoder=encoder), processor=Words()):
        with pytest.raises(VTCError, match="question"):
            model.generate(inputs_embeds=embeds, **batch, **GREEDY)
    with vtc.compress(model, Guided(0.5, text_encoder=encoder, question="what?")):
        assert model.generate(inputs_embeds=embeds, **batch, **GREEDY).shape == (1, 3)


@pytest.mark.parametrize(
    "embed, project, message",
    [
        (lambda _: torch.ones(2, 32), lambda x: x, r"embed gave \[2, 32\], allowed is \[P\]"),
        (lambda _: [1.0], lambda x: x, r"embed gave list"),
        (lambda _: torch.ones(7), lambda x: x, r"embed gave \[7\].* project \[1, 16, 32\]"),
        (
            lambda _: torch.ones(32),
            lambda x: x[1:],
            r"project gave \[15, 32\], allowed is \[16, P\]",
        ),
    ],
)
def test_a_text_encoder_of_ones_own_with_shapes_that_do_not_fit(
    embed: Any, project: Any, message: str
) -> None:
    model, batch = tiny.build("llava-clip"), tiny.inputs("llava-clip", tiny.ONE)
    method = Guided(0.5, text_encoder=(embed, project), question="what?")
    with vtc.compress(model, method), pytest.raises(VTCError, match=f"text_encoder: its {message}"):
        model.generate(**batch, **GREEDY)


def test_text_encoder_of_another_width(tmp_path: Any) -> None:
    """A CLIP made for another tower is refused before the model is touched."""
    from tokenizers import Tokenizer, models
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, PreTrainedTokenizerFast

    small = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    clip = CLIPModel(
        CLIPConfig(
            text_config=CLIPTextConfig(vocab_size=8, **small).to_dict(),
            vision_config=CLIPVisionConfig(image_size=16, patch_size=8, **small).to_dict(),
        )
    )
    clip.save_pretrained(tmp_path)
    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(tmp_path)
    model = tiny.build("llava-clip")
    before = tiny.snapshot(model)
    with pytest.raises(VTCError, match="width 16.*width 32"):
        vtc.apply(model, Guided(text_encoder=str(tmp_path), question="a"))
    assert tiny.snapshot(model) == before


def test_a_retention_list_needs_no_method_of_its_own() -> None:
    """An adaptive method may be given one count for each image as well."""
    model, batch = tiny.build("llava-clip"), tiny.inputs("llava-clip", tiny.MIXED)
    with vtc.compress(model, Norms(tokens=[1, 2, 3, 16])) as run:
        model.generate(**batch, **GREEDY)
    assert [image.patches_after for image in run.reports[-1].images] == [1, 2, 3, 16]
    with pytest.raises(VTCError, match="values"), vtc.compress(model, Ragged([0.5])):
        model.generate(**batch, **GREEDY)
