"""mPLUG-DocOwl1.5, a stand-in of its remote code: the language model alone as reference."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import vtc
from tests import asking
from tests.families import by_hand, docowl, matrix
from tests.families.matrix import METHODS
from tests.hf.tiny import snapshot
from vtc.methods.tokenflex import TokenFlexProjector

NEW = 4
GREEDY = dict(max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
ROW = [[(2, 2), (1, 1)]]


def logits(model: Any, embeds: Tensor, marks: Tensor) -> Tensor:
    """`[S, V]`: the language model alone."""
    out = model.model(inputs_embeds=embeds[None], modality_indicators=marks[None], use_cache=False)
    return model.lm_head(out.last_hidden_state)[0]


def test_retention_one_and_removal() -> None:
    model, batch = docowl.build(), docowl.inputs(ROW)
    with torch.no_grad():
        plain, tokens = model(**batch).logits, model.generate(**batch, **GREEDY)
        before = snapshot(model)
        with vtc.compress(model, "globalcom2", retention=1.0):
            assert torch.equal(model(**batch).logits, plain)
            assert torch.equal(model.generate(**batch, **GREEDY), tokens)
        assert snapshot(model) == before
        with vtc.compress(model, "token_correlation", retention=0.5) as run:
            assert model(**batch).logits.shape[1] < plain.shape[1]
            assert model.encode_images(batch["images"], None).shape == (7, docowl.TOKENS, 48)
        assert [image.tile_grid for image in run.reports[0].images] == [(2, 2), (1, 1)]
        assert snapshot(model) == before
        assert torch.equal(model(**batch).logits, plain)


@pytest.mark.parametrize("name", METHODS)
def test_equals_tiles_given_by_hand(name: str) -> None:
    """Forward and greedy."""
    if name == "tokenflex":
        with pytest.raises(vtc.VTCError, match="projector: .*fuses rows.*'pool' works here"):
            matrix.cell("docowl", False, name, "forward", "left", "contiguous")
        return
    if "projector_input" in matrix.method_of(name, "docowl", False).requests(has_cls=True):
        with pytest.raises(
            vtc.VTCError, match="reads projector_input, which .*DocOwl.* does not give"
        ):
            matrix.cell("docowl", False, name, "forward", "left", "contiguous")
        return
    for mode in ("forward", "greedy"):
        assert matrix.cell("docowl", False, name, mode, "left", "contiguous") == "ok"


@pytest.mark.parametrize("name", ["token_correlation", "pool"])
def test_batches_and_reports(name: str) -> None:
    """A batch gives what its rows give alone; every tile keeps the embedding that ends it."""
    model, batch = docowl.build(), docowl.inputs()
    with torch.no_grad(), vtc.compress(model, name, retention=0.5) as run:
        new = model.generate(**batch, **GREEDY)[:, -NEW:]
        for row, (ids, images, places) in enumerate(
            zip(
                batch["input_ids"],
                batch["images"].chunk(2),
                batch["patch_positions"].chunk(2),
                strict=True,
            )
        ):
            one = dict(input_ids=ids[None], images=images, patch_positions=places)
            assert torch.equal(model.generate(**one, **GREEDY)[0, -NEW:], new[row])
    report = run.reports[0]
    assert report.positions == "contiguous"
    assert [image.sample for image in report.images] == [0, 0, 1, 1]
    assert [image.tile_grid for image in report.images] == [(2, 2), (1, 1), (1, 1), (2, 2)]
    for image in report.images:
        assert image.patches_after <= image.patches_before / 2
        assert image.separators_after == image.separators_before == image.num_tiles


def test_token_correlation_judges_patches() -> None:
    """The paper's setting: a token stays when any of its four patches does; no budget."""
    model, batch = docowl.build(), docowl.inputs([[(1, 2)]])
    with torch.no_grad():
        states = model.model.vision_model(batch["images"], output_hidden_states=True).hidden_states

        def looked_at(layer: int) -> tuple[Tensor, Tensor]:
            """CLS attention over patches and patch keys, `[S, P]` and `[S, P, C]`."""
            block = model.model.vision_model.encoder.layers[layer]
            fused = block.self_attn.query_key_value(block.input_layernorm(states[layer]))
            query, key, _ = fused.unflatten(-1, (4, 3, 8)).unbind(-2)
            weights = torch.einsum("shd,snhd->shn", query[:, 0], key) * 8**-0.5
            return weights.softmax(-1).mean(1)[:, 1:], key[:, 1:].flatten(2)

        shallow, keys = looked_at(1)
        deep, _ = looked_at(3)
        alike = torch.nn.functional.cosine_similarity(keys[:, :, None], keys[:, None], -1)
        alpha, beta = float(alike.quantile(0.8)), 0.2  # about half of the patches are redundant
        options = dict(retention=None, alpha=alpha, beta=beta, shallow_layer=1)
        with vtc.compress(model, "token_correlation", **options) as run:
            model(**batch)
    kept = {(tile, row * 2 + col) for tile, row, col in run.reports[0].images[0].kept}
    want = {(0, token) for token in range(16)}  # the global image stays whole
    for tile in (1, 2):
        redundant = ((alike[tile] > alpha).sum(1) - 1) > beta * 63
        number = max(64 - int(redundant.sum()), 1)
        low, high = torch.quantile(deep[tile], torch.tensor([0.25, 0.75]))
        patches = set(shallow[tile].topk(number).indices.tolist())
        patches |= set((deep[tile] > high + 1.5 * (high - low)).nonzero()[:, 0].tolist())
        assert 0 < len(patches) < 64
        want |= {(tile, patch // 4) for patch in patches}
    assert kept == want and 16 < len(kept) < 48


def test_loss_and_gradients() -> None:
    """Those of the language model that is given the kept tokens; rows of different length."""
    model = docowl.build()
    batch = docowl.inputs([[(2, 2)], [(1, 1)]])
    labels = batch["input_ids"].masked_fill(batch["input_ids"] < 0, -100)
    method = vtc.create_method("uniform", retention=0.5)

    def gradients(loss: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    with vtc.compress(model, method):
        loss = model(**batch, labels=labels).loss
        ours = gradients(loss)
    seen = iter(by_hand.record(model, method, batch | {"labels": labels}))
    packed = model.encode_images(batch["images"], None)
    total, count, start = torch.zeros(()), 0, 0
    for row in range(2):
        tokens, out = next(seen)
        tiles = tokens.features.shape[0]
        mine = packed[start : start + tiles].flatten(0, 1)[out.anchor]
        sizes = torch.bincount(out.anchor // docowl.TOKENS).tolist()
        left, start = iter(mine.split(sizes)), start + tiles
        parts, marks, wanted = [], [], []
        for column, token in enumerate(batch["input_ids"][row]):
            image = token == docowl.PLACEHOLDER
            parts.append(next(left) if image else model.model.embed_tokens(token)[None])
            marks += [int(image)] * len(parts[-1])
            wanted += [int(labels[row, column])] * len(parts[-1])
        scores = logits(model, torch.cat(parts), torch.tensor(marks))
        target = torch.tensor(wanted)[1:]
        total = total + torch.nn.functional.cross_entropy(scores[:-1], target, reduction="sum")
        count += int((target >= 0).sum())
    torch.testing.assert_close(loss, total / count)
    theirs = gradients(total / count)
    assert ours.keys() == theirs.keys()
    assert any(name.startswith("model.vision_model") for name in ours)
    for name, gradient in theirs.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(ours[name], gradient, atol=1e-4 * scale + 1e-7, rtol=1e-3)


def test_a_patch_moves_its_token_alone() -> None:
    """What `fuse` says of patches and tokens is what the H-Reducer does."""
    model = docowl.build()
    hidden = torch.randn(2, 65, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = model.model.vision2text(hidden)
        with vtc.compress(model, "uniform", retention=0.5) as run:
            adapter = run._patch.adapter
        for tile, patch in ((0, 0), (0, 13), (1, 63)):
            moved = hidden.clone()
            moved[tile, 1 + patch] += 1
            changed = (model.model.vision2text(moved) - plain).abs().amax(-1)[:, :-1] > 1e-6
            one = torch.zeros(128, 1)
            one[tile * 64 + patch] = 1

            class Call:
                base = model.model

            expected = adapter.fuse(Call, one)[:, 0].view(2, 16) > 0
            assert torch.equal(changed, expected)


def test_text_guided_methods_read_the_row() -> None:
    """The tokenizer is not handed placeholders, and every row asks for itself."""
    model = docowl.build()
    batch = docowl.inputs([[(1, 1)], [(1, 1)]])
    asked = []

    class Tokenizer:
        def decode(self, ids: Tensor, **_: Any) -> str:
            asked.append(ids.tolist())
            return "USER: " + " ".join(map(str, ids.tolist()))

    encoder = asking.Encoder(32)
    with torch.no_grad():
        with vtc.compress(
            model,
            "recoverable",
            retention=0.5,
            text_encoder=(encoder.embed, encoder.project),
            processor=Tokenizer(),
        ):
            model(**batch)
    assert asked == [[t for t in row if t >= 0] for row in batch["input_ids"].tolist()]


def test_a_copy_uses_its_own_weights() -> None:
    model, batch = docowl.build(), docowl.inputs(ROW)
    with torch.no_grad(), vtc.compress(model, "token_correlation", retention=0.5):
        twin = copy.deepcopy(model)
        assert torch.equal(twin(**batch).logits, model(**batch).logits)
        for parameter in twin.model.vision_model.parameters():
            parameter.mul_(-1)
        assert not torch.equal(twin(**batch).logits, model(**batch).logits)
        vtc.remove(twin)
        assert twin(**batch).logits.shape[1] > model(**batch).logits.shape[1]


def test_clear_errors() -> None:
    model, batch = docowl.build(), docowl.inputs(ROW)
    with pytest.raises(vtc.VTCError, match="positions: got 'original'.*contiguous"):
        vtc.apply(model, "uniform", positions="original")
    with pytest.raises(vtc.VTCError, match="projector: .*fuses rows"):
        vtc.apply(model, "tokenflex", retention=0.5, projector=TokenFlexProjector(32, 48))
    model.model.vision2text.conv_shape = (2, 2)
    with pytest.raises(vtc.VTCError, match="conv_shape"):
        vtc.apply(model, "uniform")
    model.model.vision2text.conv_shape = (1, 4)
    assert not hasattr(model, "_vtc")
    with torch.no_grad(), vtc.compress(model, "uniform", retention=0.5):
        with pytest.raises(vtc.VTCError, match="images: got list"):
            model(**{**batch, "images": [batch["images"]]})
        with pytest.raises(vtc.VTCError, match="images: got shape.*here 7"):
            model(**{**batch, "images": batch["images"][1:]})
        with pytest.raises(vtc.VTCError, match="one row at a time"):
            model(**docowl.inputs([[(2, 2)], [(1, 1)]]))
        assert model(**batch).logits.shape[0] == 1  # an error leaves nothing behind


def test_tiles_without_places_are_images() -> None:
    """No positions, or no global image in front of the crops."""
    model, batch = docowl.build(), docowl.inputs([[(1, 2)]])
    places = torch.tensor([[0, 0], [0, 1], [0, 2]])
    with torch.no_grad(), vtc.compress(model, "uniform", retention=0.5) as run:
        model(**{**batch, "patch_positions": None})
        model(**{**batch, "patch_positions": places})
    assert [len(report.images) for report in run.reports] == [3, 3]


def test_what_the_bare_model_cannot_do() -> None:
    """The reasons that the support table gives."""
    model, batch = docowl.build(), docowl.inputs()
    ask = dict(GREEDY, num_beams=2, return_dict_in_generate=True, output_logits=True)
    with torch.no_grad():
        garbled = model.generate(**batch, **ask).logits[0]
        with docowl.given(model, batch, None):
            right = model.generate(**batch, **ask).logits[0]
        assert not torch.allclose(garbled, right, atol=1e-2)
        torch.testing.assert_close(right[::2], model(**batch).logits[:, -1])
        cache = model(**batch, use_cache=True).past_key_values
        more = model.prepare_inputs_for_generation(batch["input_ids"], past_key_values=cache)
        assert more["input_ids"].shape[1] == 1
