"""Runs that have to agree: compressed and not, with a cache and without, alone and in batches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vtc.plugins.hf.checks import carried, compare, runs
from vtc.plugins.hf.checks.outcome import Differs, Found, NotRun, first_line
from vtc.plugins.hf.checks.subject import Subject


def identity(subject: Subject) -> Found:
    """Retention 1.0 changes no bit of the logits and no token."""
    row = subject.rows[0]
    plain = runs.prefill(subject.model, row), runs.greedy(subject, row)
    with subject.compressed(retention=1.0, tokens=None):
        same = runs.prefill(subject.model, row), runs.greedy(subject, row)
    if not torch.equal(plain[0], same[0]):
        apart = compare.distance(same[0], plain[0])
        raise Differs(
            f"retention 1.0 changes the logits: {compare.in_words(apart, subject)}", apart
        )
    if not torch.equal(plain[1], same[1]):
        raise Differs(f"retention 1.0 answers {same[1].tolist()} in place of {plain[1].tolist()}")
    return Found(f"logits and {subject.steps} tokens are the same bits")


def decoding(subject: Subject) -> Found:
    """Decoding with a cache, by `generate` and by a loop of one's own, says what one pass over the whole
    text says. The text is given, so that a near-tie cannot lead the runs apart."""
    row = subject.rows[0]
    otherwise = "decodes differently with and without a cache"
    ways = _sound(subject, row, lambda: runs.whole(subject, row), otherwise)
    with subject.compressed() as handle:
        whole = runs.whole(subject, row)
        found = {way: runs.WAYS[way](subject, row) for way in ways}
    if not any(image.patches_after < image.patches_before for image in handle.reports[0].images):
        raise NotRun("the method drops nothing of this image")
    apart = {way: compare.distance(logits, whole) for way, logits in found.items()}
    for way in ways:
        if not apart[way] <= subject.limit:
            raise Differs(
                f"{way} with a cache is not what one pass over the whole text gives, logits are "
                f"{compare.in_words(apart[way], subject)}",
                apart[way],
            )
        if not compare.same_tokens(found[way], whole, subject.limit):
            raise Differs(f"{way} with a cache picks other tokens, and they are no near-ties")
    return compare.furthest(apart, subject)


def batches(subject: Subject) -> Found:
    """A batch with images of different sizes, padded on the left, gives what its rows give alone."""
    batch = subject.batch
    if isinstance(batch, str):
        raise NotRun(batch)

    def alone(way: str = "generate") -> Tensor:
        return torch.cat([runs.WAYS[way](subject, row) for row in subject.rows])

    ways = _sound(subject, batch, alone, "gives other logits for a batch than for its rows")
    with subject.compressed() as handle:
        found = {way: compare.distance(runs.WAYS[way](subject, batch), alone(way)) for way in ways}
    together, *single = handle.reports[: 1 + len(subject.rows)]
    moved = compare.moved(together.images, [image for report in single for image in report.images])
    for way, apart in found.items():
        if not apart <= subject.limit:
            text = f"a batch is not what its rows are alone, by {way} logits are"
            raise compare.difference(subject, text, apart, moved)
    return compare.furthest(found, subject)


def removal(subject: Subject) -> Found:
    """Behind `remove` the model answers as before, bit by bit, and carries nothing of vtc."""
    model, row = subject.model, subject.rows[0]
    plain, own = runs.prefill(model, row), model.__dict__.get("generate")
    with subject.compressed():
        runs.generated(subject, row)
    left = carried.of_vtc(model)
    if model.__dict__.get("generate") is not own:
        left.append("generate of the model")
    # transformers itself hangs recorders on layers at their first run: only a second round is to change
    # nothing at all
    before = carried.everything(model)
    with subject.compressed():
        runs.generated(subject, row)
    after = carried.everything(model)
    left += [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if left:
        raise Differs(f"left behind: {', '.join(left[:5])}")
    now = runs.prefill(model, row)
    if not torch.equal(plain, now):
        apart = compare.distance(now, plain)
        raise Differs(
            f"the logits are not what they were: {compare.in_words(apart, subject)}", apart
        )
    return Found("logits are the same bits, no hook or attribute is left")


#: name -> the check
CHECKS: dict[str, Callable[[Subject], Found]] = {
    "retention 1.0": identity,
    "decoding": decoding,
    "batch": batches,
    "removal": removal,
}


def _sound(
    subject: Subject, batch: dict[str, Any], wanted: Callable[[], Tensor], otherwise: str
) -> list[str]:
    """The ways that the model itself can go: not all count positions right behind padding, and some want
    more arguments than a loop knows.

    Args:
        wanted: what the ways should give.
        otherwise: what to say of a model whose own `generate` does not.
    """
    out: list[str] = []
    try:
        logits = wanted()
        apart = compare.distance(runs.generated(subject, batch), logits)
    except Exception as error:
        name, said = type(error).__name__, first_line(error)
        raise NotRun(f"the model itself fails: {name}: {said}") from error
    if not apart <= subject.limit / 2:
        raise NotRun(f"the model itself {otherwise}: they are apart by {apart:.1e} of their spread")
    for way, run in runs.WAYS.items():
        with contextlib.suppress(Exception):
            if (
                run is runs.generated
                or compare.distance(run(subject, batch), logits) <= subject.limit / 2
            ):
                out.append(way)
    return out
