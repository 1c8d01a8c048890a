"""What training relies on: packed questions are separate prompts, merged changes are attached ones."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import transformers as tf
from torch import nn

from vtc.eval.reference.tokenizer import build_tokenizer
from vtc.eval.reference.training import average
from vtc.eval.reference_photo import lora
from vtc.eval.reference_photo.packing import hidden, logits, pack, right
from vtc.eval.reference_photo.questions import Question
from vtc.eval.reference_photo.shown import Seen, Shown
from vtc.eval.reference_photo.tower import at_side

PATCHES = 16
ROWS = [
    [Question("color", "what color is the owl ?", "red"), Question("count", "how many ?", "12")],
    [Question("position", "where is the sun ?", "top left")],
]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    sizes = dict(num_attention_heads=4, num_hidden_layers=3, hidden_size=32, intermediate_size=48)
    config = tf.LlavaConfig(
        text_config=tf.LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **sizes),
        vision_config=tf.CLIPVisionConfig(image_size=32, patch_size=8, **sizes),
        image_token_index=4,
    )
    return tf.LlavaForConditionalGeneration(config).eval()


def alone(model, tokenizer, question, visual, keep, renumber):
    """Logits of the answer's tokens, of one prompt that holds its text and nothing else."""
    front = tokenizer("USER: ", add_special_tokens=False).input_ids
    back = tokenizer(f"\n{question.text} ASSISTANT:", add_special_tokens=False).input_ids
    answer = tokenizer(question.answer, add_special_tokens=False).input_ids
    ids = torch.tensor([back + answer])
    table = model.model.language_model.embed_tokens
    embedded = torch.cat([table(torch.tensor([front])), visual[None, keep], table(ids)], 1)
    first = len(front)
    places = [
        *range(first),
        *(first + keep),
        *range(first + PATCHES, first + PATCHES + ids.shape[1]),
    ]
    if renumber:
        places = list(range(len(places)))
    with torch.no_grad():
        states = model.model.language_model(
            inputs_embeds=embedded,
            attention_mask=torch.ones(1, len(places), dtype=torch.long),  # else gaps part sequences
            position_ids=torch.tensor([places]),
        ).last_hidden_state
        return model.lm_head(states[0, -len(answer) - 1 :])


@pytest.mark.parametrize("renumber", [False, True])
def test_packed_questions_are_separate_prompts(model, tokenizer, renumber):
    rng = np.random.default_rng(0)
    visual = torch.randn(2, PATCHES, 32, generator=torch.Generator().manual_seed(1))
    kept = [np.sort(rng.permutation(PATCHES)[:count]) for count in (5, 9)]
    packed = pack(ROWS, tokenizer, kept, PATCHES, renumber)
    with torch.no_grad():
        found, wanted = logits(model, packed, hidden(model, packed, visual))
    expected = [
        alone(model, tokenizer, question, visual[row], kept[row], renumber)
        for row, questions in enumerate(ROWS)
        for question in questions
    ]
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-5, rtol=1e-4)
    ends = [tokenizer(q.answer, add_special_tokens=False).input_ids for r in ROWS for q in r]
    assert wanted.tolist() == sum(([*ids, tokenizer.eos_token_id] for ids in ends), [])


def test_right_wants_every_token_of_an_answer(model, tokenizer):
    packed = pack(ROWS, tokenizer, [np.arange(PATCHES)] * 2, PATCHES)
    wanted = packed.targets[packed.targets >= 0]
    said = nn.functional.one_hot(wanted, len(tokenizer)).float()
    assert right(packed, said, [2, 1]) == [[True, True], [True]]
    said[3] = 0  # within the second answer: "red" and its end are two tokens, then "1", "2"
    assert right(packed, said, [2, 1]) == [[True, False], [True]]


def test_merged_changes_are_the_attached_ones(model):
    trained = copy.deepcopy(model)
    for layer in trained.model.language_model.layers:
        lora.attach(layer, 4)
    ids = torch.tensor([[5, 6, 7, 8]])
    untouched = model(input_ids=ids).logits
    torch.testing.assert_close(trained(input_ids=ids).logits, untouched)  # nothing learned yet
    rng = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, value in trained.named_parameters():
            if name.endswith(".lora_b"):
                value += 0.1 * torch.randn(value.shape, generator=rng)
    merged = copy.deepcopy(model)
    lora.merge(merged, lora.changes(trained))
    found = merged(input_ids=ids).logits
    assert (found - untouched).abs().max() > 1e-3
    torch.testing.assert_close(found, trained(input_ids=ids).logits, atol=1e-5, rtol=1e-4)


def test_positions_are_brought_to_a_grid_as_dinov2_does_at_every_call():
    config = tf.Dinov2Config(
        image_size=70, patch_size=14, hidden_size=12, num_hidden_layers=1, num_attention_heads=2
    )
    torch.manual_seed(0)
    embeddings = tf.Dinov2Model(config).embeddings
    nn.init.normal_(embeddings.position_embeddings)
    with torch.no_grad():
        expected = embeddings.interpolate_pos_encoding(torch.zeros(1, 10, 12), 42, 42)
        found = at_side(embeddings.position_embeddings, 3)
    torch.testing.assert_close(found, expected)


class Words:
    """A tokenizer with an id for every text."""

    def __init__(self):
        self.ids = {}

    def __call__(self, text, add_special_tokens):
        assert not add_special_tokens
        out = lambda: None  # noqa: E731
        out.input_ids = [self.ids.setdefault(text, len(self.ids))]
        return out


def test_the_first_stage_rewards_a_patch_that_looks_like_a_true_word():
    table = torch.randn(128, 64, generator=torch.Generator().manual_seed(0))
    shown = Shown(table, Words())
    row = Seen(("bird", "red"), colors=True, garments=False)
    wanted, known = shown.labels([row, Seen(("bird", "red"), colors=False, garments=True)])
    for one in wanted:
        assert {word for word, place in shown.place.items() if one[place]} == {"bird", "red"}
    assert not known[0, shown.place["coat"]] and known[0, shown.place["blue"]]
    # something else is not dyed: that red is there is known, whether blue is too is not
    assert known[1, shown.place["coat"]] and not known[1, shown.place["blue"]]
    assert known[1, shown.place["red"]] and known[1, shown.place["fish"]]
    noise = torch.randn(1, 16, 64, generator=torch.Generator().manual_seed(1)) * 8
    losses = []
    for words in ("bird", "red"), ("fish", "blue"):
        visual = shown.centre + noise
        for patch, word in enumerate(words):
            visual[0, patch] = shown.centre + shown.length * shown.vectors[shown.place[word]]
        losses.append(float(shown(visual, [row]).detach()))
    assert losses[0] < losses[1]


def _averaged(rank, meeting, found):
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    layers = nn.Linear(3, 2), nn.Linear(3, 2)
    layers[0].weight.grad = torch.full((2, 3), 1.0 + rank)
    layers[0].bias.grad = torch.tensor([float(rank), 4.0])
    learned = [p for layer in layers for p in layer.parameters()]
    average(p.grad for p in learned if p.grad is not None)  # the second has none
    torch.save([p.grad for layer in layers for p in layer.parameters()], f"{found}{rank}")
    torch.distributed.destroy_process_group()


def test_gradients_are_the_mean_over_processes(tmp_path):
    meeting = f"file://{tmp_path}/meeting"
    torch.multiprocessing.spawn(_averaged, (meeting, str(tmp_path / "rank")), nprocs=2)
    for rank in range(2):
        weight, bias, *none = torch.load(tmp_path / f"rank{rank}")
        assert weight.tolist() == [[1.5] * 3] * 2 and bias.tolist() == [0.5, 4.0]
        assert none == [None, None]
