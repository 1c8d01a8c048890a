"""The model that harnesses talk to, on the reference VLM."""

import pytest
import torch

from vtc.config import CompressionConfig
from vtc.errors import VTCError
from vtc.eval import reference
from vtc.eval.harnesses.model import Compressed, Generation, Question


@pytest.fixture(scope="module")
def asked():
    """Questions about three scenes and the answers of the plain model."""
    found = []
    model, processor = reference.load_reference()
    for scene in reference.scenes("test", 3, 7, questions=2):
        for question in scene.questions:
            text = reference.prompt(question.text)
            inputs = processor(images=[scene.image], text=text, return_tensors="pt")
            out = model.generate(**inputs, do_sample=False, max_new_tokens=8)
            said = processor.batch_decode(
                out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
            )
            found.append((Question(question.text, [scene.image]), said[0].strip()))
    return found


def load(method, **options):
    config = CompressionConfig.from_sources(env={}, method=method, **options)
    return Compressed.load("reference", config)


SHORT = Generation.read({"max_new_tokens": 8})


def test_without_a_method_the_answers_are_the_plain_model_s(asked):
    model = load("none")
    questions, answers = zip(*asked, strict=True)
    assert model.answer(questions, SHORT) == list(answers)
    assert (model.tokens, model.tokens_full) == (0, 0)


def test_batches_and_single_questions_agree_under_compression(asked):
    model = load("globalcom2", retention=0.25)
    questions = [question for question, _ in asked]
    together = model.answer(questions, SHORT)
    share = model.tokens / model.tokens_full
    assert 0.2 < share < 0.35  # newlines come on top of the patches
    assert together == [model.answer([question], SHORT)[0] for question in questions]
    assert together != [answer for _, answer in asked]


def test_questions_with_and_without_images_in_one_batch(asked):
    model = load("none")
    blind = Question("what is in the image ?")
    (question, answer), *_ = asked
    said = model.answer([blind, question, blind], SHORT)
    assert said[1] == answer and said[0] == said[2] == model.answer([blind], SHORT)[0]


def test_the_loss_is_that_of_a_forward_pass(asked):
    model = load("none")
    (question, answer), *_ = asked
    loaded = model.loaded
    inputs = loaded.inputs(question.images, question.text)
    tokens = loaded.processor.tokenizer(answer, add_special_tokens=False, return_tensors="pt")
    target = tokens["input_ids"]
    ids = torch.cat([inputs["input_ids"], target], dim=1)
    inputs = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.inference_mode():
        logits = loaded.model(**inputs).logits[0, -target.shape[1] - 1 : -1]
    expected = torch.nn.functional.cross_entropy(logits, target[0]).item()
    assert model.loss(question, answer) == (pytest.approx(expected, abs=1e-4), True)


def test_the_loss_of_a_wrong_answer_is_larger(asked):
    model = load("globalcom2", retention=0.5)
    (question, _), *_ = asked
    said = model.answer([question], SHORT)[0]
    wrong = "red" if said != "red" else "blue"
    low, greedy = model.loss(question, said)
    high, not_greedy = model.loss(question, wrong)
    assert greedy and not not_greedy and low < high
    with pytest.raises(VTCError, match="continuation: got ''"):
        model.loss(question, "")


def test_places_of_images_in_the_text():
    model = load("none")
    template = model.loaded.processor.chat_template
    image = object()
    try:
        model.loaded.processor.chat_template = None
        token = model.loaded.processor.image_token
        two = Question("first <image> then <image> which ?", [image, image])
        assert model._prompt(two) == f"first {token} then {token} which ?"
        odd = Question("this <image> one ?", [image, image])
        assert model._prompt(odd) == f"{token}\n{token}\nthis  one ?"
        assert model._prompt(Question("this <image> ?", [])) == "this  ?"
        model.loaded.processor.chat_template = (
            "{% for part in messages[0].content %}"
            "[{{ part.text if part.type == 'text' else 'IMG' }}]{% endfor %}"
        )
        assert model._prompt(two) == "[first ][IMG][ then ][IMG][ which ?]"
    finally:
        model.loaded.processor.chat_template = template


@pytest.mark.parametrize(
    "given, arguments, until",
    [
        ({}, {"max_new_tokens": 1024, "do_sample": False, "num_beams": 1}, ()),
        (
            {"max_new_tokens": 16, "temperature": 0, "top_p": 1.0, "num_beams": 1, "until": "\n"},
            {"max_new_tokens": 16, "do_sample": False, "num_beams": 1},
            ("\n",),
        ),
        (
            {"max_gen_toks": 5, "temperature": 0.7, "top_p": None, "until": ["a", "b"]},
            {"max_new_tokens": 5, "temperature": 0.7, "do_sample": True, "num_beams": 1},
            ("a", "b"),
        ),
        (
            {"do_sample": False, "temperature": 0.7},
            {"max_new_tokens": 1024, "do_sample": False, "num_beams": 1},
            (),
        ),
    ],
)
def test_generation_settings(given, arguments, until):
    generation = Generation.read(given)
    assert (generation.arguments, generation.until) == (arguments, until)


def test_settings_that_generate_does_not_know_are_told():
    generation = Generation.read({"image_aspect_ratio": "pad"})
    assert generation.ignored == ("image_aspect_ratio",)
    assert "image_aspect_ratio" not in generation.arguments


def test_an_answer_ends_at_the_first_stop_string():
    assert Generation({}, ("B", "\n\n")).cut("one\n\ntwo B") == "one"
    assert Generation({}, ()).cut("one\n\ntwo") == "one\n\ntwo"


def test_fields_that_come_with_the_reference_model():
    assert load("tokenflex", retention=0.5).handle is not None
