"""Samples of a prompt and what it shows, and the batches that a caller may make of them.

`tiny.inputs` makes one kind of batch; here a sample is a thing by itself, that can be padded on either
side, packed behind others in one row, continued, and shortened by hand whatever the batch was.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

import vtc
from tests import asking
from tests.device import DEVICE, placed
from tests.families import by_hand, tiny
from tests.families.models import Item
from vtc.methods.base import Method

Shown = Sequence[tuple[str, tuple[int, int]]]


@dataclass(eq=False)
class Sample:
    """One prompt.

    Attributes:
        ids: its tokens, placeholders included.
        turns: the images and clips of each turn, in order.
        prefix: how many of the tokens PaliGemma reads in both directions.
        hidden: columns that the mask hides.
        stem: the sample that this one continues with text alone, if any.
    """

    ids: list[int]
    turns: list[list[Item]]
    prefix: int
    hidden: tuple[int, ...] = ()
    stem: Sample | None = None

    @property
    def items(self) -> list[Item]:
        return [item for turn in self.turns for item in turn]

    def then(self, ids: Sequence[int]) -> Sample:
        """The sample with text behind it."""
        return Sample([*self.ids, *ids], self.turns, self.prefix, self.hidden, self.stem or self)

    def shows(self, other: Sample) -> Sample:
        """The sample with another one behind it, as a later turn brings it."""
        turns = [*self.turns, *other.turns]
        return Sample([*self.ids, *other.ids], turns, self.prefix, self.hidden)

    def behind(self, ids: Sequence[int]) -> Sample:
        """The sample with text in front of it."""
        ids = [*ids, *self.ids]
        hidden = tuple(column + len(ids) - len(self.ids) for column in self.hidden)
        return Sample(ids, self.turns, self.prefix + len(ids) - len(self.ids), hidden)

    def masked(self, columns: Sequence[int]) -> Sample:
        """The sample with some of its columns hidden by the mask."""
        return Sample(self.ids, self.turns, self.prefix, tuple(columns))

    @cached_property
    def seen(self) -> Sample:
        """The sample without what is hidden whole."""
        if self.stem is not None:
            seen = self.stem.seen
            return self if seen is self.stem else seen.then(self.ids[len(self.stem.ids) :])
        gone = [n for n in range(len(self.items)) if set(self.places(n)) <= set(self.hidden)]
        if not gone:
            return self
        out, left = self, [column for column in self.hidden]
        for number in reversed(gone):
            left = [column for column in left if column not in out.places(number)]
            assert not left, "what is hidden in part beside what is hidden whole"
            out = out.without(number)
        return out

    def without(self, number: int) -> Sample:
        """The sample as if one of its images were not there."""
        gone = set(self.places(number))
        ids = [token for column, token in enumerate(self.ids) if column not in gone]
        turns = [[item for item in turn if item is not self.items[number]] for turn in self.turns]
        return Sample(ids, turns, self.prefix - len(gone))

    def places(self, number: int) -> list[int]:
        """The columns of an image's placeholders."""
        visual = [column for column, token in enumerate(self.ids) if token in VISUAL]
        sizes = [sum(token in VISUAL for token in item.ids) for item in self.items]
        start = sum(sizes[:number])
        return visual[start : start + sizes[number]]


VISUAL = (tiny.IMAGE, tiny.VIDEO)


def draw(family: str, shown: Shown, seed: int) -> Sample:
    """A sample that shows `(kind, (height, width))` between random words."""
    rng = torch.Generator().manual_seed(seed)
    ids = [tiny.BOS, *words(rng, int(torch.randint(2, 6, (1,), generator=rng)))]
    images = sum(kind == "image" for kind, _ in shown)
    items = []
    for kind, size in shown:
        items.append(tiny.FAMILIES[family].item(kind, size, rng, images))
        ids += items[-1].ids + words(rng, 3)
    ids += words(rng, 4)
    return Sample(ids, [items], len(ids))


def words(rng: torch.Generator, count: int) -> list[int]:
    """Random text."""
    return torch.randint(*tiny.WORDS, (count,), generator=rng).tolist()


# -- batches ------------------------------------------------------------------------------------


def pixels(
    family: str, samples: Sequence[Sample], one_row: bool, dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """The inputs beside the text of what samples show."""
    if family in ("idefics3", "smolvlm"):  # they have all pictures of a row in one row of tiles
        rows = [sample.items for sample in samples]
        rows = [[item for row in rows for item in row]] if one_row else rows
    else:
        rows = [turn for sample in samples for turn in sample.turns]
    out = placed(tiny.FAMILIES[family].collate(rows))
    floats = {k: v for k, v in out.items() if isinstance(v, Tensor) and v.is_floating_point()}
    return {**out, **{key: value.to(dtype) for key, value in floats.items()}}


def types(family: str, ids: Tensor, prefix: Sequence[int] | None = None) -> dict[str, Tensor]:
    """Token types, for families that have them; `prefix`: of each row, for PaliGemma."""
    kinds = (ids == tiny.IMAGE).long() + 2 * (ids == tiny.VIDEO).long()
    if family.startswith("qwen"):
        return {"mm_token_type_ids": kinds}
    if family == "gemma3":
        return {"token_type_ids": kinds}
    if family == "paligemma":
        ends = torch.tensor(prefix or [0] * len(ids), device=ids.device)[:, None]
        return {"token_type_ids": (torch.arange(ids.shape[1], device=ids.device) >= ends).long()}
    return {}


def batch(
    family: str,
    samples: Sequence[Sample],
    side: str = "left",
    answers: Sequence[Sequence[int]] | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """A batch as a processor makes it; `answers` are put behind the prompts, padded on the right."""
    width = max(len(sample.ids) for sample in samples)
    tail = max(map(len, answers)) if answers else 0
    ids, mask, ends = [], [], []
    for row, sample in enumerate(samples):
        gap = width - len(sample.ids)
        behind = list(answers[row]) if answers else []
        rest = tail - len(behind)
        front, back = (gap, 0) if side == "left" else (0, gap)
        ids.append([tiny.PAD] * front + sample.ids + [tiny.PAD] * back + behind + [tiny.PAD] * rest)
        seen = [int(column not in sample.hidden) for column in range(len(sample.ids))]
        mask.append([0] * front + seen + [0] * back + [1] * len(behind) + [0] * rest)
        ends.append(front + sample.prefix)
    tokens = torch.tensor(ids, device=DEVICE)
    return {
        "input_ids": tokens,
        "attention_mask": torch.tensor(mask, device=DEVICE),
        **types(family, tokens, ends),
        **pixels(family, samples, False, dtype),
    }


def packed(
    family: str, model: nn.Module, samples: Sequence[Sample], dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """All samples in one row, as padding-free training has them: positions restart, there is no mask."""
    ones = [batch(family, [sample], dtype=dtype) for sample in samples]
    out = {"input_ids": torch.cat([one["input_ids"] for one in ones], 1)}
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in ones[0]:
            out[name] = torch.cat([one[name] for one in ones], 1)
    parts = []
    for one in ones:
        long = by_hand.long_positions(model, one)
        count = torch.arange(one["input_ids"].shape[1], device=DEVICE)
        first = int(family == "paligemma")
        parts.append(torch.stack([count, *long]) if long.dim() == 2 else long[None] + first)
    positions = torch.cat(parts, 1)
    out["position_ids"] = positions[:, None] if len(positions) == 4 else positions
    return {**out, **pixels(family, samples, True, dtype)}


# -- the reference ------------------------------------------------------------------------------


@dataclass
class Setting:
    """A model and how it is compressed; no method is the bare model.

    Attributes:
        family: of the model.
        model: bare outside of `block`.
        method, positions: what to compress by.
        shorts: short prompts that were made by hand already.
    """

    family: str
    model: Any
    method: Method | None
    positions: str = "original"
    shorts: dict[Sample, by_hand.Short] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def block(self) -> Any:
        """The with-block inside which the model is compressed."""
        if self.method is None:
            return nullcontext()
        return vtc.compress(
            self.model, self.method, processor=asking.tokenizer(), positions=self.positions
        )

    def batch(self, samples: Sequence[Sample], side: str = "left", answers: Any = None) -> Any:
        return batch(self.family, samples, side, answers, self.dtype)

    @torch.no_grad()
    def short(self, sample: Sample) -> by_hand.Short:
        """The sample shortened by hand."""
        assert self.method is not None
        sample = sample.seen
        if sample.stem is not None:
            short, one = self.short(sample.stem), self.batch([sample])
            return by_hand.followed(self.model, short, one, self.positions)
        if sample not in self.shorts:
            one = self.batch([sample])
            if sample.items:
                short = by_hand.shorten(self.model, one, self.method, self.positions)
            else:
                short = plain(self.model, one, self.positions)
            self.shorts[sample] = short
        return self.shorts[sample]

    @torch.no_grad()
    def alone(self, sample: Sample) -> tuple[Tensor, list[int]]:
        """The logits `[S, V]` that the sample must get, and the columns that they stand for."""
        if self.method is None:
            return self.model(**self.batch([sample])).logits[0], list(range(len(sample.ids)))
        short = self.short(sample)
        columns = list(range(len(sample.ids)))
        if sample.seen is not sample:
            columns = [column for column in columns if column not in sample.hidden]
        return by_hand.logits(self.model, short), [columns[column] for column in short.columns]


def plain(model: nn.Module, one: dict[str, Any], policy: str) -> by_hand.Short:
    """The `Short` of a row of text."""
    start = by_hand.Short(
        torch.empty(1, 0, model.get_input_embeddings().embedding_dim, dtype=model.dtype).to(DEVICE),
        one["input_ids"][:, :0],
        torch.empty(0),
        {name: value for name, value in one.items() if name.endswith("token_type_ids")},
        [],
    )
    return by_hand.followed(model, start, one, policy)
