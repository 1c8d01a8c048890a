"""Ways to call a model beside one forward or one `generate` over a batch: what trainers, servers and
decoding loops of the caller's own do.

A way runs inside a compressed model and says which logits it got for which sample; `holds` compares
them with what the language model alone gives on the sample shortened by hand.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache

from tests.device import DEVICE
from tests.families import tiny
from tests.families.samples import Sample, Setting, draw, words

NEW = 3
#: logits may differ by as much, absolutely and relatively
TOLERANCE = {
    torch.float64: (2e-4, 1e-4),  # some rotary embeddings are float32 always
    torch.float32: (2e-3, 1e-3),
}


@dataclass
class Check:
    """Logits that a way got.

    Attributes:
        got: `[N, V]`.
        sample: whose they are.
        columns: of the sample, one a row; None for every token that is left.
        what: said when they are wrong.
    """

    got: Tensor
    sample: Sample
    columns: Sequence[int] | None = None
    what: str = ""


def holds(setting: Setting, checks: list[Check]) -> None:
    """Raises:
    AssertionError: logits are not what the language model alone gives.
    """
    for check in checks:
        want, columns = setting.alone(check.sample)
        if check.columns is not None:
            places = [max(0, sum(c <= column for c in columns) - 1) for column in check.columns]
            want = want[places]
        near(check.got, want, check.what)


def near(got: Tensor, want: Tensor, what: str = "") -> None:
    """The logits are alike, as far as their precision goes."""
    assert got.shape == want.shape, f"{what}: {tuple(got.shape)}, by hand {tuple(want.shape)}"
    if want.dtype == torch.bfloat16:  # of which `generate` makes float32
        off = (got.float() - want.float()).norm(dim=-1) / want.float().norm(dim=-1)
        assert float(off.max()) < 0.1, f"{what}: {float(off.max()):.3f} of the logits' norm"
        return
    atol, rtol = TOLERANCE[got.dtype]
    off = (got - want).abs() - rtol * want.abs()
    assert bool((off <= atol).all()), (
        f"{what}: logits are off by {float((got - want).abs().max()):.3g}"
    )


# -- parts of ways ------------------------------------------------------------------------------


def prompts(family: str, video: bool, seed: int = 0) -> list[Sample]:
    """Three samples for the matrix; the second shows nothing."""
    rows = [[tiny.CLIP], [], [tiny.A, tiny.CLIP]] if video else [[tiny.A], [], [tiny.B, tiny.C]]
    return [draw(family, shown, seed + n) for n, shown in enumerate(rows)]


def text(seed: int, batch: int, count: int = 3) -> list[list[int]]:
    """Words of a new turn, for every row."""
    rng = torch.Generator().manual_seed(seed)
    return [words(rng, count) for _ in range(batch)]


def fresh_cache(setting: Setting) -> DynamicCache:
    return DynamicCache(config=setting.model.config.get_text_config())


def cache_name() -> str:
    """What this transformers calls it."""
    return "cache" if transformers.__version__ >= "5.24" else "past_key_values"


def cache_of(output: Any) -> Any:
    """The cache in an output of either form."""
    values = output.values() if isinstance(output, dict) else output
    return next(value for value in values if isinstance(value, Cache))


def cache_given(call: dict[str, Any]) -> Any:
    """The cache among the arguments of a call, under either name."""
    return next((call[name] for name in ("cache", "past_key_values") if name in call), None)


def logits_of(output: Any) -> Tensor:
    return output.logits if isinstance(output, dict) else output[0]


def longer(mask: Tensor, count: int) -> Tensor:
    return torch.cat([mask, mask.new_ones(len(mask), count)], 1)


def last(samples: Sequence[Sample], logits: Tensor, count: int, what: str) -> list[Check]:
    """Checks of the last logits of every row."""
    return [
        Check(logits[row, -count:], s, range(len(s.ids) - count, len(s.ids)), f"{what}, row {row}")
        for row, s in enumerate(samples)
    ]


def forward_on(
    setting: Setting,
    samples: Sequence[Sample],
    cache: Any,
    mask: Tensor | None,
    more: list[list[int]],
    name: str | None = None,
    what: str = "forward",
    **ask: Any,
) -> tuple[list[Sample], list[Check], Any]:
    """A forward with the new columns alone; returns the longer samples, checks and the output."""
    after = [s.then(ids) for s, ids in zip(samples, more, strict=True)]
    if mask is not None:
        ask["attention_mask"] = longer(mask, len(more[0]))
    ids = torch.tensor(more, device=DEVICE)
    out = setting.model(input_ids=ids, **{name or cache_name(): cache}, **ask)
    return after, last(after, logits_of(out), len(more[0]), what), out


def generate_on(
    setting: Setting,
    samples: Sequence[Sample],
    batch: dict[str, Any],
    what: str = "generate",
    **ask: Any,
) -> tuple[list[Sample], list[Check], Any]:
    """Greedy decoding behind `batch`; returns the longer samples, checks and the output."""
    ask = dict(max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False) | ask
    ask |= dict(output_logits=True, return_dict_in_generate=True)
    out = setting.model.generate(**batch, **ask)
    width, count = batch["input_ids"].shape[1], len(out.logits)
    assert torch.equal(out.sequences[:, :width], batch["input_ids"]), f"{what}: another prompt"
    assert count == out.sequences.shape[1] - width, f"{what}: {count} steps"
    logits = torch.stack(out.logits, 1)
    chosen = logits.float().clone()
    chosen[..., list(setting.model.generation_config.suppress_tokens)] = -torch.inf
    new = out.sequences[:, width:]
    # with the logits, this says that the tokens are the right ones and does not trip over near ties
    assert torch.equal(chosen.argmax(-1), new), f"{what}: not the greedy tokens"
    after = [s.then(ids) for s, ids in zip(samples, new.tolist(), strict=True)]
    checks = [
        Check(logits[row], s, range(len(s.ids) - count - 1, len(s.ids) - 1), f"{what}, row {row}")
        for row, s in enumerate(after)
    ]
    return after, checks, out


def whole(
    setting: Setting, batch: dict[str, Any], more: list[list[int]], pixels: bool = False
) -> dict[str, Any]:
    """The conversation with text behind it, as `generate` takes it; `pixels`: with what it shows."""
    new = torch.tensor(more, dtype=torch.long, device=DEVICE)
    out = {k: v for k, v in batch.items() if pixels or k.endswith("token_type_ids")}
    out["input_ids"] = torch.cat([batch["input_ids"], new], 1)
    out["attention_mask"] = longer(batch["attention_mask"], new.shape[1])
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in out:
            kind = int(setting.family == "paligemma")
            out[name] = torch.cat([out[name], torch.full_like(new, kind)], 1)
    return out


def fill(setting: Setting, batch: dict[str, Any], cache: Any, name: str | None = None) -> Any:
    """A forward that fills a cache with the prompts."""
    return setting.model(**batch, **{name or cache_name(): cache}, use_cache=True)


# -- ways ---------------------------------------------------------------------------------------


def packed_rows(setting: Setting, video: bool, side: str) -> list[Check]:
    """Samples behind each other in one row."""
    from tests.families.samples import packed

    samples = prompts(setting.family, video)
    row = packed(setting.family, setting.model, samples, setting.dtype)
    got = setting.model(**row, use_cache=False).logits[0]
    return split(setting, samples, got)


def split(setting: Setting, samples: Sequence[Sample], got: Tensor) -> list[Check]:
    """Checks of samples that stand behind each other in `got [S, V]`."""
    lengths = [len(s.ids) for s in samples]
    if setting.method is not None:
        lengths = [setting.short(s).ids.shape[1] for s in samples]
    assert sum(lengths) == len(got), f"{len(got)} places, by hand {lengths}"
    parts = got.split(lengths)
    return [
        Check(p, s, None, f"sample {n}")
        for n, (p, s) in enumerate(zip(parts, samples, strict=True))
    ]


def masked_image(setting: Setting, video: bool, side: str) -> list[Check]:
    """The second row's picture is hidden by the mask over its placeholders."""
    shown = tiny.CLIP if video else tiny.A
    samples = [draw(setting.family, [shown], seed) for seed in range(3)]
    batch = setting.batch(samples, side)
    gap = batch["input_ids"].shape[1] - len(samples[1].ids) if side == "left" else 0
    hidden = [gap + column for column in samples[1].places(0)]
    batch["attention_mask"][1, hidden] = 0
    left = [samples[0], samples[1].without(0), samples[2]]
    got = setting.model(**batch).logits
    checks = []
    for row, s in enumerate(left):
        if setting.method is None:
            mine = got[row][batch["attention_mask"][row].bool()]
        else:
            length = setting.short(s).ids.shape[1]
            mine = got[row, -length:] if side == "left" else got[row, :length]
        checks.append(Check(mine, s, None, f"row {row}"))
    return checks + generate_on(setting, left, batch)[1]


def partly_masked_image(setting: Setting, video: bool, side: str) -> list[Check]:
    """A third of the only picture is hidden."""
    sample = draw(setting.family, [tiny.CLIP if video else tiny.A], 0)
    sample.hidden = tuple(sample.places(0)[1::3])
    got = setting.model(**setting.batch([sample])).logits[0]
    return [Check(got, sample)]


def completions(setting: Setting, video: bool, side: str) -> list[Check]:
    """`logits_to_keep=N + 1`: prompts padded on the left, completions on the right."""
    samples = prompts(setting.family, video)
    answers = [ids[: 4 - 2 * (row % 2)] for row, ids in enumerate(text(1, len(samples), 4))]
    batch = setting.batch(samples, "left", answers)
    got = setting.model(**batch, logits_to_keep=5, use_cache=False).logits
    checks = []
    for row, (s, ids) in enumerate(zip(samples, answers, strict=True)):
        after = s.then(ids)
        columns = range(len(s.ids) - 1, len(after.ids))
        checks.append(Check(got[row, : len(columns)], after, columns, f"row {row}"))
    return checks


def columns_by_number(setting: Setting, video: bool, side: str) -> list[Check]:
    """`logits_to_keep` as an index tensor: words, placeholders, the last column."""
    samples = [prompts(setting.family, video)[0], *prompts(setting.family, video, 7)[:1]]
    batch = setting.batch(samples, side)
    width = batch["input_ids"].shape[1]
    gaps = [width - len(s.ids) if side == "left" else 0 for s in samples]
    common = range(max(gaps), min(g + len(s.ids) for g, s in zip(gaps, samples, strict=True)))
    keep = torch.tensor([common[k] for k in (1, 5, len(common) // 2, -2, -1)], device=DEVICE)
    got = setting.model(**batch, logits_to_keep=keep).logits
    return [
        Check(got[row], s, [int(c) - gaps[row] for c in keep], f"row {row}")
        for row, s in enumerate(samples)
    ]


def _moved(move: str) -> Callable[[Setting, bool, str], list[Check]]:
    """A cache that its owner changes between two calls, continued by forward and by `generate`."""

    def way(setting: Setting, video: bool, side: str) -> list[Check]:
        checks = []
        for by in ("forward", "generate"):
            samples = prompts(setting.family, video)
            cache = fresh_cache(setting)
            batch = setting.batch(samples, side)
            fill(setting, batch, cache)
            samples, batch = moved(setting, move, samples, batch, cache, side)
            what = f"{move}, {by}"
            more = text(3, len(samples))
            if by == "forward":
                mask = batch["attention_mask"]
                checks += forward_on(setting, samples, cache, mask, more, what=what)[1]
            else:
                samples = [s.then(ids) for s, ids in zip(samples, more, strict=True)]
                asked = whole(setting, batch, more) | {cache_name(): cache}
                checks += generate_on(setting, samples, asked, what)[1]
        return checks

    way.__doc__ = f"The owner of the cache calls its {move}."
    return way


def moved(
    setting: Setting,
    move: str,
    samples: list[Sample],
    batch: dict[str, Any],
    cache: Any,
    side: str,
) -> tuple[list[Sample], dict[str, Any]]:
    """Do with the cache what its owner does; returns what it holds then."""
    rows = list(range(len(samples)))
    if move == "reset":
        cache.reset()
        samples = [draw(setting.family, [] if not s.items else [_again(s)], 20) for s in samples]
        batch = setting.batch(samples, side)
        fill(setting, batch, cache)
        return samples, batch
    if move == "crop":  # of a draft that was not accepted
        draft = text(2, len(samples))
        samples, _, _ = forward_on(setting, samples, cache, batch["attention_mask"], draft)
        cache.crop(-2)
        samples = [s.stem.then(ids[:1]) for s, ids in zip(samples, draft, strict=True)]
        return samples, whole(setting, batch, [ids[:1] for ids in draft])
    if move == "repeat":
        cache.batch_repeat_interleave(2)
        rows = [row for row in rows for _ in range(2)]
    elif move == "select":
        rows = rows[::-2]
        cache.batch_select_indices(torch.tensor(rows, device=DEVICE))
    elif move == "reorder":
        rows = [rows[-1], *rows[:-1]]
        cache.reorder_cache(torch.tensor(rows, device=DEVICE))
    texts = {k: v[rows] for k, v in batch.items() if k.endswith(("_ids", "_mask"))}
    return [samples[row] for row in rows], texts


def _again(sample: Sample) -> tuple[str, tuple[int, int]]:
    """What another prompt shows in place of a sample's."""
    return tiny.CLIP if sample.items[-1].kind == "video" else tiny.B


def tuples(setting: Setting, video: bool, side: str) -> list[Check]:
    """`return_dict=False`, then a decoding loop with the cache from the tuple."""
    samples = prompts(setting.family, video)
    batch = setting.batch(samples, side)
    out = setting.model(**batch, use_cache=True, return_dict=False)
    checks, mask = [], batch["attention_mask"]
    if side == "left":
        checks += last(samples, logits_of(out), 1, "prompt")
    for step in range(2):
        samples, more, out = forward_on(
            setting,
            samples,
            cache_of(out),
            mask,
            text(step, len(samples), 1),
            what=f"step {step}",
            return_dict=False,
        )
        mask, checks = longer(mask, 1), checks + more
    return checks


def _turns(name: str) -> Callable[[Setting, bool, str], list[Check]]:
    """Two turns of a forward each, then `generate` over the whole conversation."""

    def way(setting: Setting, video: bool, side: str) -> list[Check]:
        if setting.method is None and name not in (cache_name(), "past_key_values"):
            raise TypeError(f"this transformers does not know `{name}`")
        samples = prompts(setting.family, video)
        batch, cache = setting.batch(samples, side), fresh_cache(setting)
        fill(setting, batch, cache, name)
        more = text(1, len(samples))
        mask = batch["attention_mask"]
        samples, checks, _ = forward_on(setting, samples, cache, mask, more, name, "forward")
        batch, more = whole(setting, batch, more), text(2, len(samples))
        samples = [s.then(ids) for s, ids in zip(samples, more, strict=True)]
        batch = whole(setting, batch, more)
        return checks + generate_on(setting, samples, {**batch, name: cache}, "generate")[1]

    way.__doc__ = f"Two turns, the cache given as `{name}`."
    return way


def _picture_turn(by: str) -> Callable[[Setting, bool, str], list[Check]]:
    def way(setting: Setting, video: bool, side: str) -> list[Check]:
        kind = tiny.CLIP if video else tiny.B
        first = [draw(setting.family, [tiny.CLIP if video else tiny.A], n) for n in range(2)]
        second = [draw(setting.family, [kind], 30 + n) for n in range(2)]
        longest = max(len(s.ids) for s in second)
        both = []
        for a, b in zip(first, second, strict=True):  # turns of one length, as text has no padding
            b.ids += text(4, 1, longest - len(b.ids))[0]
            both.append(a.shows(b))
        batch, cache = setting.batch(first, side), fresh_cache(setting)
        fill(setting, batch, cache)
        new = setting.batch(second)
        mask = longer(batch["attention_mask"], longest)
        ask: dict[str, Any] = {**new, "attention_mask": mask, cache_name(): cache}
        if by == "forward":
            got = setting.model(**ask).logits
            checks = last(both, got, 4, "the second picture")
            return checks + forward_on(setting, both, cache, mask, text(5, 2))[1]
        for name in ("input_ids", "mm_token_type_ids", "token_type_ids"):
            if name in new:
                ask[name] = torch.cat([batch[name], new[name]], 1)
        return generate_on(setting, both, ask, "the second picture")[1]

    way.__doc__ = f"The second turn brings another picture, in a {by}."
    return way


def other(setting: Setting) -> Setting:
    """Another setting of the same model."""
    import vtc

    method = None if setting.method is None else vtc.create_method("pool", retention=0.25)
    policy = "contiguous" if setting.positions != "contiguous" else "original"
    return Setting(setting.family, setting.model, method, policy)


def contexts(setting: Setting, video: bool, side: str) -> list[Check]:
    """Two generators take turns, and two threads run at a time, each with a setting of its own."""
    settings = [setting, other(setting)]
    samples = prompts(setting.family, video)
    done: list[list[Check]] = [[], []]

    def serve(number: int) -> Iterator[None]:
        mine = settings[number]
        with mine.block():  # by this statement calls are told apart, both share a context
            batch, cache = mine.batch(samples, side), fresh_cache(mine)
            fill(mine, batch, cache)
            yield
            mask = batch["attention_mask"]
            after, checks, _ = forward_on(mine, samples, cache, mask, text(number, len(samples)))
            done[number] += checks
            yield
            done[number] += generate_on(mine, samples, batch)[1]

    running = [serve(0), serve(1)]
    while running:
        running = [each for each in running if next(each, "end") != "end"]
    together = threading.Barrier(2)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with torch.no_grad(), settings[number].block():
                together.wait(60)
                batch = settings[number].batch(samples, side)
                done[number] += generate_on(settings[number], samples, batch, "thread")[1]
        except BaseException as error:
            failures.append(error)
            together.abort()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    for mine, checks in zip(settings, done, strict=True):
        holds(mine, checks)
    return []


#: ways by the names of their columns in the table
WAYS: dict[str, Callable[[Setting, bool, str], list[Check]]] = {
    "packed rows": packed_rows,
    "masked image": masked_image,
    "partly masked image": partly_masked_image,
    "logits_to_keep=N": completions,
    "logits_to_keep=[...]": columns_by_number,
    "reset": _moved("reset"),
    "crop": _moved("crop"),
    "repeat": _moved("repeat"),
    "select": _moved("select"),
    "reorder": _moved("reorder"),
    "tuples": tuples,
    "cache=": _turns("cache"),
    "past_key_values=": _turns("past_key_values"),
    "picture turn, forward": _picture_turn("forward"),
    "picture turn, generate": _picture_turn("generate"),
    "two settings": contexts,
}
#: ways that have no padding, or bring their own
ONE_SIDED = ("packed rows", "partly masked image", "logits_to_keep=N")
#: ways that open their own blocks
OWN_BLOCKS = (contexts,)


def run(setting: Setting, way: str, video: bool, side: str) -> None:
    """Raises:
    AssertionError: it does not hold.
    """
    function = WAYS[way]
    with torch.no_grad():
        if function in OWN_BLOCKS:
            function(setting, video, side)
            return
        with setting.block():
            checks = function(setting, video, side)
        holds(setting, checks)
