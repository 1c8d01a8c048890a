"""All questions about a picture in one sequence: the prompt up to the picture is computed once.

A row is what stands in front of the question (with some of the visual tokens) and behind it the
questions with their answers. Each question sees the front and itself, and its positions go on behind
the front, so a row is exactly so many separate prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .language import IMAGE
from .questions import Question


@dataclass
class Packed:
    """A batch of rows.

    Attributes:
        ids: tokens `[rows, length]`; at the places of visual tokens anything.
        patches: which patch stands at each place, -1 for words, `[rows, length]`.
        positions: `[rows, length]`.
        mask: who sees whom, `[rows, 1, length, length]`.
        targets: the token behind each place, -100 where none is asked for, `[rows, length]`.
        question: number of the question of each place within its row, -1 in front, `[rows, length]`.
    """

    ids: Tensor
    patches: Tensor
    positions: Tensor
    mask: Tensor
    targets: Tensor
    question: Tensor

    def to(self, device: Any) -> Packed:
        """The same on a device."""
        return Packed(*(getattr(self, field.name).to(device) for field in fields(self)))


def pack(
    rows: Sequence[Sequence[Question]],
    tokenizer: Any,
    kept: Sequence[np.ndarray],
    patches: int,
    renumber: bool = False,
) -> Packed:
    """Rows for pictures.

    Args:
        rows: the questions about each picture.
        kept: which of the `patches` visual tokens of each picture stand in its row, in order; none is
            the prompt without any.
        renumber: count positions without gaps; else dropped tokens leave theirs free.
    """
    front, back = _template(tokenizer)
    made: list[tuple[list[int], ...]] = []
    for questions, keep in zip(rows, kept, strict=True):
        ids: list[int] = [*front[0], *[0] * len(keep), *front[1]]
        image = [-1] * len(front[0]) + [int(k) for k in keep] + [-1] * len(front[1])
        first = len(front[0])
        if renumber:
            end, places = len(ids), list(range(len(ids)))
        else:
            end = first + patches + len(front[1])
            behind = range(first + patches, end)
            places = [*range(first), *(first + int(k) for k in keep), *behind]
        owner, wanted = [-1] * len(ids), [-100] * len(ids)
        for number, question in enumerate(questions):
            prompt = tokenizer(question.text, add_special_tokens=False).input_ids + back
            answer = tokenizer(question.answer, add_special_tokens=False).input_ids
            answer = [*answer, tokenizer.eos_token_id]
            block = prompt + answer[:-1]
            ids += block
            image += [-1] * len(block)
            places += range(end, end + len(block))
            owner += [number] * len(block)
            wanted += [-100] * (len(prompt) - 1) + answer
        made.append((ids, image, places, owner, wanted))
    long = max(len(row[0]) for row in made)
    fills = (0, -1, 0, -2, -100)  # -2: of no question
    padded = [
        torch.tensor([[*row[n], *[fill] * (long - len(row[n]))] for row in made])
        for n, fill in enumerate(fills)
    ]
    numbers, image_of, positions, asked_by, targets = padded
    causal = torch.ones(long, long, dtype=torch.bool).tril()
    seen = (asked_by[:, None, :] == -1) | (asked_by[:, :, None] == asked_by[:, None, :])
    return Packed(numbers, image_of, positions, (seen & causal)[:, None], targets, asked_by)


def _template(tokenizer: Any) -> tuple[tuple[list[int], list[int]], list[int]]:
    """Tokens in front of and behind the picture, and those between question and answer."""
    turn = [{"type": "image"}, {"type": "text", "text": "\0"}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": turn}], add_generation_prompt=True, tokenize=False
    )
    before, rest = text.split(IMAGE)
    between, after = rest.split("\0")
    a, b, c = (tokenizer(t, add_special_tokens=False).input_ids for t in (before, between, after))
    return (a, b), c


def hidden(model: Any, packed: Packed, visual: Tensor) -> Tensor:
    """Last hidden states `[rows, length, width]` of the language model.

    Args:
        visual: projected patches `[rows, patches, width]`.
    """
    words = model.model.language_model.embed_tokens(packed.ids)
    index = packed.patches.clamp(min=0)[..., None].expand(-1, -1, visual.shape[-1])
    embedded = torch.where(
        packed.patches[..., None] >= 0, visual.gather(1, index).to(words.dtype), words
    )
    bias = torch.zeros(packed.mask.shape, dtype=embedded.dtype).masked_fill(~packed.mask, -1e9)
    return model.model.language_model(
        inputs_embeds=embedded,
        attention_mask=bias,
        position_ids=packed.positions,
        use_cache=False,
    ).last_hidden_state


def logits(model: Any, packed: Packed, states: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and targets of all answer tokens, in order of rows and places."""
    asked = packed.targets >= 0
    return model.lm_head(states[asked]), packed.targets[asked]


def right(packed: Packed, found: Tensor, counts: Sequence[int]) -> list[list[bool]]:
    """For each question of each row: is every token of the answer, the end included, the likeliest?
    Under teacher forcing this equals an exact match of greedy decoding."""
    good = torch.ones_like(packed.targets, dtype=torch.bool)
    asked = packed.targets >= 0
    good[asked] = found.argmax(-1) == packed.targets[asked]
    return [
        [bool(good[row][packed.question[row] == number].all()) for number in range(count)]
        for row, count in enumerate(counts)
    ]
