"""What a generator is told: labels, features of a text, texts; dropped, padded, guided."""

from dataclasses import replace

import pytest
import torch

from tests.discrete.small_generators import BITS, BYTES, MODELS, draw, lively, text
from vtc import VTCError
from vtc.discrete import CodeSpace, Condition, create_generator
from vtc.discrete.backbone import TransformerConfig
from vtc.discrete.generator import Generator, GeneratorConfig
from vtc.discrete.noise import Noise


def test_text_conditions_and_guidance() -> None:
    model, given = MODELS["text"]("raster")
    model = lively(model)
    alone = model.sample(given, seed=0)
    assert alone.shape == (3, 16, 5)
    assert torch.equal(model.sample(given, guidance=1.0, null=text(), seed=0), alone)
    assert torch.equal(model.sample(given, guidance=1.0, seed=0), alone)
    assert not torch.equal(model.sample(given, guidance=30.0, seed=0), alone)


def test_a_row_without_text_sees_the_image_alone() -> None:
    model, given = MODELS["text"]("raster")
    model, ids = lively(model), draw(model.space)
    without = model.without(given)
    other = replace(text(), valid=torch.zeros(3, 4, dtype=torch.bool))
    assert torch.equal(model.next_logits(ids, without), model.next_logits(ids, other))
    plain = replace(model.config.transformer, context_dim=0)
    same = Generator(replace(model.config, transformer=plain)).eval()
    same.load_state_dict(model.state_dict(), strict=False)
    expected = same.next_logits(ids, Condition())
    assert torch.allclose(model.next_logits(ids, without), expected, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("length", [2, 6])
@pytest.mark.parametrize("padded", ["given", "null", "both", "none"])
def test_null_conditions_are_padded_and_repeated(rows: int, length: int, padded: str) -> None:
    def random(rows: int, length: int, valid: bool) -> Condition:
        mask = torch.ones(rows, length, dtype=torch.bool)
        mask[:, 1:] = False
        context = tuple(torch.randn(rows, length, 6) for _ in range(2))
        return Condition(None, context, mask if valid else None)

    model = lively(MODELS["text"]("raster")[0])
    given = random(3, 4, padded in ("given", "both"))
    null = random(rows, length, padded in ("null", "both"))
    both, ids = given.followed_by(null), draw(model.space)
    logits = model.next_logits(torch.cat([ids, ids]), both)
    whole = Condition(None, tuple(c.expand(3, -1, -1) for c in null.context), null.valid)
    if null.valid is not None:
        whole = replace(whole, valid=null.valid.expand(3, -1))
    expected = torch.cat([model.next_logits(ids, part) for part in (given, whole)])
    assert torch.allclose(logits, expected, atol=1e-5)


def test_a_null_condition_of_labels_is_repeated() -> None:
    model = lively(create_generator("tiny_elm_ar", space=BYTES, dim=32))
    labels, no_class = torch.tensor([0, 3, 7]), torch.tensor([10])
    guided = model.sample(labels, guidance=3.0, seed=0)
    assert torch.equal(model.sample(labels, guidance=3.0, null=no_class, seed=0), guided)


def test_labels_are_dropped_in_training_only() -> None:
    model = create_generator("tiny_elm_ar", space=BYTES)
    given = model.condition(torch.zeros(2000).long())
    dropped = model.drop(given, Noise(0)).labels
    assert 0.05 < (dropped == 10).float().mean() < 0.15  # type: ignore[operator]
    assert model.eval().drop(given, Noise(0)) is given


def test_texts_are_dropped_in_training_only() -> None:
    model = MODELS["text"]("raster")[0].train()
    for padded in (True, False):
        given = text(2000)
        given = given if padded else replace(given, valid=None)
        valid = model.drop(given, Noise(0)).valid
        gone = ~valid.any(1)  # type: ignore[union-attr]
        assert 0.05 < gone.float().mean() < 0.15
        assert torch.equal(valid[~gone], given.seen()[~gone])  # type: ignore[index]
        assert model.eval().drop(given, Noise(0)) is given
        model.train()
    losses = [
        Generator(replace(model.config, drop=share)).loss(draw(model.space), text(), 0)["loss"]
        for share in (0.0, 1.0)
    ]
    assert all(loss.isfinite() for loss in losses)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "context: got none"),
        (Condition(None, None, torch.ones(3, 4)), "context: got none"),
        (torch.tensor([0, 1, 2]), "context: got none"),
        (replace(text(), labels=torch.tensor([0, 1, 2])), "labels: got"),
        (text(layers=3), "context: got 3 of shape"),
        (Condition(None, (torch.zeros(3, 4, 5),) * 2), r"shape \[batch, T, 6\]"),
        (Condition(None, (torch.zeros(3, 4, 6), torch.zeros(2, 4, 6))), "context: got 2"),
        (Condition(None, (torch.zeros(3, 6),) * 2), "context: got 2 of shape"),
        (Condition(None, ()), "context: got 0"),
        (replace(text(), valid=torch.ones(3, 5)), "valid: got shape"),
        (text(2), "context: got 2 rows, expected 3"),
    ],
)
def test_bad_contexts(given, message: str) -> None:
    model = MODELS["text"]("raster")[0]
    for call in (
        lambda: model.sample(given, batch=3),
        lambda: model.loss(draw(model.space), given),
    ):
        with pytest.raises(VTCError, match=message):
            call()


def test_guidance_needs_a_condition() -> None:
    model = Generator(GeneratorConfig(BITS, TransformerConfig(16, 1, 2), "bit"))
    with pytest.raises(VTCError, match="guidance: got one"):
        model.sample(batch=2, guidance=2.0)
    with pytest.raises(VTCError, match="valid: got one"):
        model.sample(Condition(valid=torch.ones(2, 3)), batch=2)


def test_texts_are_read_into_the_context() -> None:
    space = CodeSpace(4, (2,) * 4)
    model = lively(create_generator("tiny_instella_ar", space=space, dim=32, words=9))
    ids, text = draw(space), torch.tensor([[1, 2, 3], [4, 5, -1], [-1, -1, -1]])
    given = model.condition(Condition(text=text))
    assert given.text is None and len(given.context) == 3  # type: ignore[arg-type]
    logits = model.next_logits(ids, given)
    assert logits.isfinite().all()
    # padding tells nothing, words and their order do
    longer = torch.nn.functional.pad(text, (0, 2), value=-1)
    torch.testing.assert_close(
        model.next_logits(ids, model.condition(Condition(text=longer))), logits
    )
    turned = model.next_logits(ids, model.condition(Condition(text=text[:, [1, 0, 2]])))
    assert not torch.allclose(turned[0], logits[0]) and torch.allclose(turned[2], logits[2])
    model.train()
    model.loss(ids, Condition(text=text), seed=0)["loss"].backward()
    assert model.text.table.weight.grad[1:6].abs().sum(1).min() > 0
    made = model.sample(Condition(text=text), guidance=2.0, seed=0)
    assert made.shape == (3, 4, 4)
    for call, message in (
        (lambda: model.sample(Condition(text=text + 9)), "text: got shape"),
        (lambda: model.sample(batch=1), "context: got none"),
        (lambda: MODELS["index"]("raster")[0].condition(Condition(text=text)), "text: got one"),
        (
            lambda: GeneratorConfig(space, TransformerConfig(16, 1, 2), words=3),
            "words: got 3, which needs",
        ),
    ):
        with pytest.raises(VTCError, match=message):
            call()
