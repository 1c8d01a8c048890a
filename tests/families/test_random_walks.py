"""Random combinations of everything that a caller may combine, each against the language model alone.

A walk is drawn from its number: a family, a method, a precision, a batch and a way to call, and in a
conversation what happens to its cache between the calls. Only what is possible is drawn, so whatever is
raised is a failure. Greedy tokens are not compared with those of another run, which near ties would turn
over: the logits of every step are compared, for the tokens that were chosen.

    VTC_WALK=1234 pytest tests/families/test_random_walks.py   # one walk, by its number
"""

from __future__ import annotations

import copy
import functools
import os
import random
import traceback
import warnings
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import DynamicCache, StaticCache

from tests import asking
from tests.device import DEVICE
from tests.families import by_hand, matrix, samples, tiny, ways
from tests.families.samples import Sample, Setting
from tests.families.ways import Check
from vtc.plugins.hf.adapters import adapter_for

#: walks of one test; they are of one family, whose model is built once
CHUNK = 10
FAST, SLOW = 200, 2000
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
#: what one call is
SINGLE = ("forward", "generate", "no cache", "beams", "packed")
SINGLE += ("completions", "columns", "labels", "embeds")
#: what the owner of a cache may do between two calls
MOVES = ("nothing", "reset", "crop", "repeat", "select", "reorder", "deepcopy", "picture")
#: what may follow
STEPS = ("forward", "loop", "generate")
#: methods whose choice does not hang on sums in half precision
STABLE = ("random", "uniform", "pool")
#: transformers mixes the samples of a row, see the remarks in docs/support.md
UNPACKED = ("gemma3", "paligemma")
#: families whose later turns transformers, and so the language model, cannot read as one conversation
NO_PICTURES = ("gemma3", "paligemma")


@dataclass(frozen=True)
class Walk:
    """One combination; `single` or `moves` and `steps` say what is called."""

    number: int
    family: str
    video: bool
    method: str
    retention: float
    positions: str
    dtype: str
    rows: tuple[tuple[tuple[str, tuple[int, int]], ...], ...]
    side: str
    single: str | None
    first: str
    cache: str
    name: str
    moves: tuple[str, ...]
    steps: tuple[str, ...]
    masks: bool
    return_dict: bool
    hide: str


@functools.cache
def fuses(family: str) -> bool:
    """Whether the family's projector makes one token of several patches."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the family without an adapter
        return bool(adapter_for(matrix.model_of(family)).fuses)


def draw(number: int) -> Walk:
    """The walk of a number."""
    rng = random.Random(number)
    names = list(tiny.FAMILIES)
    if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 23):
        names = [name for name in names if name not in ("smolvlm", "video_llava")]  # refused
    family = names[number // CHUNK % len(names)]
    video = "video" in tiny.FAMILIES[family].kinds and rng.random() < 0.3
    dtype = rng.choices(list(DTYPES), [6, 1, 1])[0]
    methods = {n for n in matrix.METHODS if not asking.reads_text(n)}
    if family == tiny.UNKNOWN or dtype == "bfloat16":
        methods &= set(STABLE)
    # a canvas scaled down is no rectangle, and a projector that fuses patches has no other in its place
    if family == "llava_onevision_shrunk" or fuses(family):
        methods -= {"tokenflex"}
    pool: list[list[Any]] = [[tiny.A], [tiny.C], [tiny.B, tiny.C], []]
    if video:
        pool = [[tiny.CLIP], [tiny.A, tiny.CLIP], []]
    rows = [tuple(rng.choice(pool[:-1])), *(tuple(rng.choice(pool)) for _ in range(2))]
    rows = rows[: rng.choice((1, 1, 2, 3))]
    rng.shuffle(rows)
    single = rng.choice(SINGLE) if rng.random() < 0.45 else None
    if single == "packed" and family in UNPACKED:
        single = "forward"
    if single == "embeds" and family.startswith("qwen"):  # whose positions are read from ids
        single = "forward"
    cache = rng.choice(("own", "output", "static"))
    first = rng.choice(("forward", "generate", "prefix"))
    # M-RoPE behind a bare prefix is refused where an earlier call left its deltas on the model
    stale = family.startswith("qwen")
    if first == "prefix" and (family in NO_PICTURES or cache == "output" or stale):
        first = "forward"
    hide = rng.choices(("nothing", "whole", "part"), (6, 1, 1))[0]
    if not rows[-1] or single == "packed" or (hide == "part" and family.startswith("qwen")):
        hide = "nothing"
    if hide == "whole" and sum(map(len, rows)) == 1:  # the bare model's call
        hide = "nothing"
    if family.startswith("llava_onevision") and len(rows[-1]) > 1:  # fewer are packed otherwise
        hide = "nothing"
    moves, steps = [], []
    for _ in range(rng.choice((1, 1, 2))):
        allowed = set(MOVES)
        if cache == "static":  # cannot be cropped, and its rows cannot be picked
            allowed -= {"crop", "repeat", "select"}
        if family == "paligemma" and cache == "static":  # one used and emptied is refused
            allowed -= {"reset"}
        if family in NO_PICTURES or video or len(moves):
            allowed -= {"picture"}
        moves.append(rng.choice(sorted(allowed)))
        steps.append(rng.choice(STEPS))
    if hide == "part":  # no rectangle either
        methods -= {"tokenflex"}
    return Walk(
        number,
        family,
        video,
        rng.choice(sorted(methods)),
        rng.choice((0.25, 0.5, 0.75)),
        rng.choice(matrix.POSITIONS),
        dtype,
        tuple(rows),
        rng.choice(matrix.SIDES),
        single,
        first,
        cache,
        rng.choice(("cache", "past_key_values")),
        () if single else tuple(moves),
        () if single else tuple(steps),
        len(rows) > 1 or hide != "nothing" or rng.random() < 0.5,
        rng.random() < 0.7,
        hide,
    )


# -- what is built once ---------------------------------------------------------------------------


@functools.cache
def model_of(family: str, dtype: str) -> Any:
    if dtype != "float32":
        return copy.deepcopy(model_of(family, "float32")).to(DTYPES[dtype])
    return tiny.build(family)


@functools.cache
def sample_of(family: str, shown: tuple[Any, ...], number: int) -> Sample:
    return samples.draw(family, shown, number)


@functools.lru_cache(maxsize=64)
def setting_of(
    family: str, video: bool, dtype: str, method: str, retention: float, positions: str
) -> Setting:
    chosen = matrix.method_of(method, family, video, retention)
    return Setting(family, model_of(family, dtype), chosen, positions)


# -- a walk -----------------------------------------------------------------------------------------


class Run:
    """A walk under way.

    Attributes:
        samples: the conversation of every row so far.
        batch: the same in the caller's columns, with the mask and token types.
        cache: what holds it, but for the last `pending` columns.
        checks: logits that were got.
    """

    def __init__(self, walk: Walk) -> None:
        self.walk = walk
        self.setting = setting_of(
            walk.family, walk.video, walk.dtype, walk.method, walk.retention, walk.positions
        )
        self.model = self.setting.model
        self.rng = random.Random(-walk.number)
        rows = enumerate(walk.rows)
        self.samples = [sample_of(walk.family, shown, row + walk.number % 2) for row, shown in rows]
        if walk.hide != "nothing":
            last = self.samples[-1]
            places = last.places(len(last.items) - 1)
            some = places if walk.hide == "whole" else places[len(places) // 3 : len(places) // 2]
            self.samples[-1] = last.masked(some)
        self.batch: dict[str, Any] = {}
        self.cache: Any = None
        self.pending = 0
        self.front: list[int] = []
        self.checks: list[Check] = []

    def go(self) -> None:
        with torch.no_grad():
            after = []
            if self.walk.first == "prefix" and self.walk.single is None:
                self._prefix()
            with self.setting.block():
                if self.walk.single is not None:
                    after = [getattr(self, "_" + self.walk.single.replace(" ", "_"))()]
                else:
                    self.converse()
            for check in after:
                if check is not None:
                    check()
            ways.holds(self.setting, self.checks)

    def _prefix(self) -> None:
        """The bare model reads a system prompt ahead of time."""
        (self.front,) = ways.text(self.walk.number, 1, 6)
        self.cache = self._new_cache()
        many = torch.tensor([self.front] * len(self.samples), device=DEVICE)
        self.model(input_ids=many, **{ways.cache_name(): self.cache}, use_cache=True)

    def _behind_front(self, call: dict[str, Any], how: str) -> dict[str, Any]:
        """The call with the system prompt in front: of the mask, and in `generate` of the tokens too."""
        front = torch.tensor([self.front] * len(self.samples), device=DEVICE)
        self.samples = [s.behind(self.front) for s in self.samples]
        before = {"attention_mask": torch.ones_like(front), "input_ids": front}
        for name in ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"):
            if name in self.batch:
                some = before.get(name, torch.zeros_like(front))
                self.batch[name] = torch.cat([some, self.batch[name]], 1)
        whole = how == "generate"
        names = [
            name for name in self.batch if name in call and (whole or name == "attention_mask")
        ]
        return call | {name: self.batch[name] for name in names}

    # single calls; what they return is called outside of the block

    def _call(self) -> dict[str, Any]:
        self.batch = self.setting.batch(self.samples, self.walk.side)
        call = dict(self.batch)
        if not self.walk.masks:
            del call["attention_mask"]
        return call

    def _forward(self) -> None:
        out = self.model(**self._call(), return_dict=self.walk.return_dict)
        self._rows(ways.logits_of(out))

    def _embeds(self) -> None:
        call = self._call()
        call["inputs_embeds"] = self.model.get_input_embeddings()(call.pop("input_ids"))
        self._rows(ways.logits_of(self.model(**call, return_dict=self.walk.return_dict)))

    def _columns(self) -> None:
        call = self._call()
        width = call["input_ids"].shape[1]
        gaps = [width - len(s.ids) if self.walk.side == "left" else 0 for s in self.samples]
        ends = [gap + len(s.ids) for gap, s in zip(gaps, self.samples, strict=True)]
        common = range(max(gaps), min(ends))
        keep = [self.rng.choice(common) for _ in range(self.rng.randint(1, 5))]
        asked = torch.tensor([c - self.rng.choice((0, width)) for c in keep], device=DEVICE)
        got = ways.logits_of(self.model(**call, logits_to_keep=asked))
        for row, s in enumerate(self.samples):
            mine = [column - gaps[row] for column in keep]
            self.checks.append(Check(got[row], s, mine, f"row {row}"))

    def _rows(self, got: Tensor, left: bool | None = None) -> None:
        left = self._left if left is None else left
        for row, s in enumerate(self.samples):
            length = self.setting.short(s).ids.shape[1]
            mine = got[row, -length:] if left else got[row, :length]
            self.checks.append(Check(mine, s, None, f"row {row}"))

    @property
    def _left(self) -> bool:
        """Where the short rows stand: on the caller's side; they end together where none was padded."""
        lengths = {len(s.ids) for s in self.samples}
        return self.walk.side == "left" or len(lengths) == 1

    def _generate(self) -> None:
        ask = {"cache_implementation": "static"} if self.walk.cache == "static" else {}
        self._generated(self._call(), **ask)

    def _no_cache(self) -> None:
        self._generated(self._call(), use_cache=False)

    def _generated(self, call: dict[str, Any], **ask: Any) -> Any:
        self.samples, checks, out = ways.generate_on(self.setting, self.samples, call, **ask)
        self.checks += checks
        return out

    def _beams(self) -> Any:
        ask = dict(max_new_tokens=3, min_new_tokens=3, do_sample=False, num_beams=3)
        call = self._call()
        out = self.model.generate(**call, **ask)[:, call["input_ids"].shape[1] :]

        def compare() -> None:
            for row, s in enumerate(self.samples):
                mine, short = out[row].tolist(), self.setting.short(s)
                theirs = by_hand.generate(self.model, short, **ask)
                if mine != theirs:  # then they are as likely
                    ours, best = self._likely(s, mine), self._likely(s, theirs)
                    slack = 0.3 if self.walk.dtype == "bfloat16" else 1e-3
                    assert abs(ours - best) < slack, f"row {row}: {mine}, by hand {theirs}"

        return compare

    def _likely(self, sample: Sample, tokens: list[int]) -> float:
        want, _ = self.setting.alone(sample.then(tokens))
        chance = want[-len(tokens) - 1 : -1].float().log_softmax(-1)
        return float(sum(chance[k, token] for k, token in enumerate(tokens)))

    def _packed(self) -> None:
        row = samples.packed(self.walk.family, self.model, self.samples, self.setting.dtype)
        out = self.model(**row, use_cache=False, return_dict=self.walk.return_dict)
        self.checks += ways.split(self.setting, self.samples, ways.logits_of(out)[0])

    def _completions(self) -> None:
        answers = [
            ids[: self.rng.randint(1, 4)]
            for ids in ways.text(self.walk.number, len(self.samples), 4)
        ]
        most = max(map(len, answers))
        call = self.setting.batch(self.samples, "left", answers)
        use = self.rng.random() < 0.5
        got = ways.logits_of(
            self.model(
                **call, logits_to_keep=most + 1, use_cache=use, return_dict=self.walk.return_dict
            )
        )
        for row, (s, ids) in enumerate(zip(self.samples, answers, strict=True)):
            columns = range(len(s.ids) - 1, len(s.ids) + len(ids))
            self.checks.append(Check(got[row, : len(columns)], s.then(ids), columns, f"row {row}"))

    def _labels(self) -> Any:
        call = self._call()
        visual = torch.isin(call["input_ids"], torch.tensor(samples.VISUAL, device=DEVICE))
        first = self.batch["attention_mask"].cumsum(1) <= 1  # predicted from nothing
        labels = call["input_ids"].masked_fill(visual | first, -100)
        labels = labels.masked_fill(self.batch["attention_mask"] == 0, -100)
        ask = {}
        if (
            self.rng.random() < 0.5 and self.walk.family not in NO_PICTURES
        ):  # which have their own loss
            end = torch.full_like(labels[:, :1], -100)
            ask["shift_labels"] = torch.cat([labels[:, 1:], end], 1)
        out = self.model(**call, labels=labels, **ask, return_dict=self.walk.return_dict)
        loss = out["loss"] if isinstance(out, dict) else out[0]
        logits = out["logits"] if isinstance(out, dict) else out[1]
        padded = len({len(s.ids) for s in self.samples}) > 1
        self._rows(logits, left=padded and self.walk.side == "left")

        def compare() -> None:
            losses = []
            for row, s in enumerate(self.samples):
                want, columns = self.setting.alone(s)
                gap = labels.shape[1] - len(s.ids) if self.walk.side == "left" else 0
                mine = labels[row, gap:][columns]
                each = torch.nn.functional.cross_entropy(
                    want[:-1].float(), mine[1:], reduction="none", ignore_index=-100
                )
                losses.append(each[mine[1:] != -100])
            near = {"bfloat16": 0.05}.get(self.walk.dtype, 1e-4)
            torch.testing.assert_close(loss.float(), torch.cat(losses).mean(), rtol=near, atol=near)

        return compare

    # conversations

    def converse(self) -> None:
        walk = self.walk
        self.start(walk.first)
        for number, (move, step) in enumerate(zip(walk.moves, walk.steps, strict=True)):
            self.move(move, step)
            if move != "picture":
                getattr(self, "on_by_" + step)(100 * walk.number + number)

    def _new_cache(self) -> Any:
        config = self.model.config.get_text_config()
        if self.walk.cache == "own":
            return DynamicCache(config=config)
        if self.walk.cache == "static":
            return StaticCache(config=config, max_cache_len=320)
        return None

    def _given(self, cache: Any) -> dict[str, Any]:
        return {} if cache is None else {self.walk.name: cache}

    def start(self, how: str) -> None:
        """The first call, which fills the cache."""
        call = self._call()
        if how == "prefix" and not self.front:  # a second start, behind a reset
            how = "forward"
        elif how == "prefix":
            how = self.rng.choice(("forward", "generate"))
            call = self._behind_front(call, how)
        cache = self.cache if self.cache is not None else self._new_cache()
        self._filled(call | self._given(cache), how)

    def _filled(self, call: dict[str, Any], how: str) -> None:
        own = ways.cache_given(call)
        if how == "generate":
            out = self._generated(call)
            new = out.sequences[:, call["input_ids"].shape[1] :].tolist()
            self.batch, self.pending = ways.whole(self.setting, self.batch, new), 1
        else:
            out = self.model(**call, use_cache=True, return_dict=self.walk.return_dict)
            self._ends(ways.logits_of(out))
            self.batch = ways.whole(self.setting, self.batch, [[] for _ in self.samples])
            self.pending = 0
        self.cache = own if own is not None else ways.cache_of(out)

    def _ends(self, logits: Tensor) -> None:
        """The last logits, where a caller reads those of the next token."""
        if self._left:
            self.checks += ways.last(self.samples, logits, 1, "prompt")

    def move(self, move: str, step: str) -> None:
        """What happens to the cache."""
        rows = list(range(len(self.samples)))
        if move == "reset":
            self.cache.reset()
            self.front = []
            self.samples = [
                sample_of(self.walk.family, shown, row + 5)
                for row, shown in enumerate(self.walk.rows)
            ]
            self.start(step if step != "loop" else "forward")
        elif move == "crop":  # of a draft of three tokens, two of which are not accepted
            before, batch, pending = self.samples, self.batch, self.pending
            draft = ways.text(self.walk.number, len(rows), 3)
            self._forward_on(draft)
            self.cache.crop(-2)
            some = [ids[:1] for ids in draft]
            self.samples = [s.then(ids) for s, ids in zip(before, some, strict=True)]
            self.batch, self.pending = ways.whole(self.setting, batch, some), 0
            assert pending in (0, 1)
        elif move == "deepcopy":
            mine, self.cache = self.cache, copy.deepcopy(self.cache)
            if self.walk.cache != "static":
                mine.crop(-1)  # is no business of the copy
        elif move == "picture":
            self._picture(step)
        elif move in ("repeat", "select", "reorder"):
            if move == "repeat":
                self.cache.batch_repeat_interleave(2)
                rows = [row for row in rows for _ in range(2)]
            elif move == "select":
                rows = [self.rng.choice(rows) for _ in range(2)]
                self.cache.batch_select_indices(torch.tensor(rows, device=DEVICE))
            else:
                self.rng.shuffle(rows)
                self.cache.reorder_cache(torch.tensor(rows, device=DEVICE))
            self.samples = [self.samples[row] for row in rows]
            self.batch = {k: v[rows] for k, v in self.batch.items()}

    def _picture(self, step: str) -> None:
        """The next turn shows something."""
        new = [sample_of(self.walk.family, (tiny.A,), 9 + row) for row in range(len(self.samples))]
        longest = max(len(s.ids) for s in new)
        new = [
            Sample([*s.ids, *[7] * (longest - len(s.ids))], s.turns, s.prefix)
            for s in new  # of one length, as what is behind a cache has no padding
        ]
        both = [a.shows(b) for a, b in zip(self.samples, new, strict=True)]
        fresh = self.setting.batch(new)
        self.batch = ways.whole(self.setting, self.batch, [s.ids for s in new])
        kinds = samples.types(self.walk.family, self.batch["input_ids"])
        self.batch |= kinds
        seen = longest + self.pending
        call = {k: v for k, v in fresh.items() if k not in self.batch} | self.batch
        self.samples = both
        if step != "generate":
            for name in ("input_ids", *kinds):
                call[name] = self.batch[name][:, -seen:]
        if not self.walk.masks:
            del call["attention_mask"]
        self._filled(
            call | self._given(self.cache), "generate" if step == "generate" else "forward"
        )

    def _forward_on(self, more: list[list[int]], check: bool = True) -> None:
        self.samples = [s.then(ids) for s, ids in zip(self.samples, more, strict=True)]
        self.batch = ways.whole(self.setting, self.batch, more)
        count = len(more[0]) + self.pending
        ask = {"attention_mask": self.batch["attention_mask"]} if self.walk.masks else {}
        out = self.model(
            input_ids=self.batch["input_ids"][:, -count:],
            **self._given(self.cache),
            **ask,
            use_cache=True,
            return_dict=self.walk.return_dict,
        )
        self.pending = 0
        self.checks += ways.last(self.samples, ways.logits_of(out), len(more[0]), "on")

    def on_by_forward(self, seed: int) -> None:
        self._forward_on(ways.text(seed, len(self.samples), self.rng.randint(1, 4)))

    def on_by_loop(self, seed: int) -> None:
        for step in range(2):
            self._forward_on(ways.text(seed + step, len(self.samples), 1))

    def on_by_generate(self, seed: int) -> None:
        more = ways.text(seed, len(self.samples), self.rng.randint(1, 4))
        self.samples = [s.then(ids) for s, ids in zip(self.samples, more, strict=True)]
        self.batch = ways.whole(self.setting, self.batch, more)
        call = dict(self.batch)
        if not self._padding_said(call):
            del call["attention_mask"]
        self._filled(call | self._given(self.cache), "generate")

    def _padding_said(self, call: dict[str, Any]) -> bool:
        """Whether to give a mask: without one, `generate` hides padding tokens that it made itself."""
        return self.walk.masks or bool((call["input_ids"] == tiny.PAD).any())


# -- tests --------------------------------------------------------------------------------------------


def walk_all(numbers: list[int]) -> None:
    """Walk, and say of every walk that fails how to run it again."""
    failed = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.logging.set_verbosity_error()
        for number in numbers:
            walk = draw(number)
            try:
                Run(walk).go()
            except Exception as error:
                said = "; ".join(f"{f.name} {getattr(walk, f.name)!r}" for f in fields(walk))
                where = traceback.extract_tb(error.__traceback__)[-1]
                failed.append(
                    f"VTC_WALK={number} ({said}): {type(error).__name__}: {error} [{where}]"
                )
    assert not failed, "\n\n".join(failed)


def chunks(first: int, count: int) -> Any:
    one = os.environ.get("VTC_WALK")
    starts = range(first, first + count, CHUNK)
    cases = [list(range(start, start + CHUNK)) for start in starts]
    cases = [[int(one)]] if one else cases
    return pytest.mark.parametrize("numbers", cases, ids=lambda each: f"{each[0]}-{each[-1]}")


@chunks(0, FAST)
def test_walks(numbers: list[int]) -> None:
    walk_all(numbers)


@pytest.mark.slow
@chunks(FAST, SLOW)
def test_many_walks(numbers: list[int]) -> None:
    walk_all(numbers)
