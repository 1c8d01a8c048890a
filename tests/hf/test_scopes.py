"""Settings belong to the code that enters a block: threads, generators, coroutines on one model."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vtc
from tests.hf import by_hand, tiny
from tests.hf.methods import Attended, Norms
from vtc.errors import VTCError

NEW = 4
GREEDY = dict(max_new_tokens=NEW, do_sample=False)
HALF, FEW = Norms(0.5), Attended(0.25)


@pytest.fixture
def model() -> nn.Module:
    return tiny.build("next-clip")


BATCH = tiny.inputs("next-clip", tiny.ONE)


def tokens(model: nn.Module) -> list[int]:
    """What the model answers."""
    return model.generate(**BATCH, **GREEDY)[0, -NEW:].tolist()


def logits(model: nn.Module) -> Tensor:
    """Of the last token."""
    with torch.no_grad():
        return model(**BATCH).logits[0, -1]


def wanted(model: nn.Module, method: Any) -> tuple[list[int], Tensor]:
    """The reference's tokens, and its scores behind the prompt; None for the bare model."""
    if method is None:
        assert "_vtc" not in vars(model)
        return tokens(model), logits(model)
    (row,) = by_hand.rows(model, BATCH, method)
    return by_hand.greedy(model, row, NEW)[0], by_hand.logits(model, row)[-1]


def holds(model: nn.Module, want: tuple[list[int], Tensor]) -> None:
    """Both entries give what is wanted."""
    assert tokens(model) == want[0]
    torch.testing.assert_close(logits(model), want[1], atol=1e-4, rtol=1e-4)


def in_thread(work: Callable[[], Any], copied: bool = False) -> Any:
    """The result of `work` in a thread of its own, whose context is empty unless `copied`."""
    out: list[Any] = []

    def run() -> None:
        try:
            out.append(work())
        except BaseException as error:  # noqa: BLE001
            out.append(error)

    context = contextvars.copy_context()
    target = (lambda: context.run(run)) if copied else run
    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    if isinstance(out[0], BaseException):
        raise out[0]
    return out[0]


@pytest.mark.parametrize("first_out", [0, 1])
def test_handles_left_in_any_order(model: nn.Module, first_out: int) -> None:
    """Each handle takes away its own patch; the model is as before behind the last one."""
    logits(model)
    before = tiny.snapshot(model)
    want = {m: wanted(model, m_) for m, m_ in (("half", HALF), ("few", FEW), ("bare", None))}
    a, b = vtc.compress(model, HALF), vtc.compress(model, FEW)
    assert tiny.snapshot(model) == before, "a model is touched when a block is entered"
    with ExitStack():
        a.__enter__()
        b.__enter__()
        holds(model, want["few"])
        left, other, name = (a, b, "few") if first_out == 0 else (b, a, "half")
        left.__exit__(None, None, None)
        assert other.active and not left.active
        holds(model, want[name])
        other.__exit__(None, None, None)
    assert tiny.snapshot(model) == before
    holds(model, want["bare"])


def test_a_block_that_is_never_entered_says_so(model: nn.Module) -> None:
    """Nothing is silently left undone."""
    handle = vtc.compress(model, HALF)
    with pytest.warns(RuntimeWarning, match="never entered"):
        del handle
        gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with vtc.compress(model, HALF) as handle:
            pass
        del handle
        gc.collect()


def test_generators_that_take_turns(model: nn.Module) -> None:
    """They share a thread and a context; each has its own settings all the same."""
    want = {m.name: wanted(model, m) for m in (HALF, FEW)}
    bare = wanted(model, None)

    def stream(method: Any) -> Iterator[list[int]]:
        with vtc.compress(model, method):
            yield []
            for _ in range(2):
                yield tokens(model)

    first, second = stream(HALF), stream(FEW)
    next(first), next(second)
    for _ in range(2):
        assert next(first) == want[HALF.name][0]
        assert next(second) == want[FEW.name][0]
    second.close()
    assert list(first) == []
    assert "_vtc" not in vars(model)
    holds(model, bare)


def test_coroutines_that_take_turns(model: nn.Module) -> None:
    """Tasks of one loop, in its own thread, in worker threads, and one without a block."""
    want = {m.name: wanted(model, m) for m in (HALF, FEW)}
    bare = wanted(model, None)[0]

    async def ask(method: Any, way: str) -> list[int]:
        with vtc.compress(model, method) as run:
            await asyncio.sleep(0)
            if way == "thread":
                got = await asyncio.to_thread(tokens, model)
            else:
                got = tokens(model)
            await asyncio.sleep(0)
            assert len(run.reports) == 1
        return got

    async def plain() -> list[int]:
        await asyncio.sleep(0)
        return tokens(model)

    async def serve() -> list[list[int]]:
        ways = [(HALF, "here"), (FEW, "here"), (HALF, "thread"), (FEW, "thread")]
        return await asyncio.gather(*(ask(*way) for way in ways), plain())

    out = asyncio.run(serve())
    assert out == [*(want[m.name][0] for m in (HALF, FEW, HALF, FEW)), bare]
    assert "_vtc" not in vars(model)


def test_requests_in_threads_with_settings_of_their_own(model: nn.Module) -> None:
    """What a server does: a block a request, some without one, at the same time, again and again."""
    want = {m and m.name: wanted(model, m)[0] for m in (HALF, FEW, None)}
    handles: list[Any] = []
    jobs = [HALF, FEW, None, HALF]
    start = threading.Barrier(len(jobs))
    wrong: list[Any] = []

    def serve(method: Any) -> None:
        try:
            start.wait()
            for _ in range(5):
                if method is None:
                    got = tokens(model)
                else:
                    with vtc.compress(model, method) as run:
                        got = tokens(model)
                    handles.append(run)
                if got != want[method and method.name]:
                    wrong.append((method, got))
        except BaseException as error:  # noqa: BLE001
            wrong.append(error)

    old = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=serve, args=(m,)) for m in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(old)
    assert wrong == []
    assert [len(run.reports) for run in handles] == [1] * 15
    assert "_vtc" not in vars(model)


def test_a_thread_started_in_the_one_open_block(model: nn.Module) -> None:
    """It inherits no context, and gets the block's settings: this is how streaming works."""
    want = wanted(model, HALF)
    with vtc.compress(model, HALF) as run:
        assert in_thread(lambda: tokens(model)) == want[0]
        assert in_thread(lambda: len(logits(model))) == len(want[1])
        assert len(run.reports) == 2


@pytest.mark.parametrize("entry", [tokens, logits], ids=["generate", "forward"])
def test_a_thread_started_while_several_are_open(model: nn.Module, entry: Any) -> None:
    """Nobody can tell which is meant, so nobody guesses; a copied context says it."""
    want = wanted(model, FEW)[0]
    with vtc.compress(model, HALF), vtc.compress(model, FEW):
        with pytest.raises(VTCError, match="thread.*copy_context"):
            in_thread(lambda: entry(model))
        assert in_thread(lambda: tokens(model), copied=True) == want

        def own() -> list[int]:
            with vtc.compress(model, FEW):
                return tokens(model)

        assert in_thread(own) == want


def test_a_thread_that_was_there_before_the_block(model: nn.Module) -> None:
    """It cannot have been started inside: it runs bare, and says so once."""
    bare = wanted(model, None)[0]
    entered, done, out = threading.Event(), threading.Event(), []

    def work() -> None:
        entered.wait()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            out.append((tokens(model), [str(w.message) for w in caught]))
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    with vtc.compress(model, HALF):
        entered.set()
        assert done.wait(60)
    thread.join()
    (got, said), *_ = out
    assert got == bare and any("ran before" in text for text in said)


def test_apply_holds_outside_of_blocks(model: nn.Module) -> None:
    """In every thread, and a block goes in front of it for its own code alone."""
    want = {m.name: wanted(model, m)[0] for m in (HALF, FEW)}
    handle = vtc.apply(model, HALF)
    entered, leave = threading.Event(), threading.Event()
    out: list[Any] = []

    def other() -> None:
        with vtc.compress(model, FEW):
            entered.set()
            leave.wait()
            out.append(tokens(model))

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait()
    assert tokens(model) == want[HALF.name]
    leave.set()
    thread.join()
    assert out == [want[FEW.name]]
    assert in_thread(lambda: tokens(model)) == want[HALF.name]
    handle.remove()
    assert "_vtc" not in vars(model)


def test_apply_and_remove_inside_a_block_stay_inside(model: nn.Module) -> None:
    """They change what holds for the block, and leaving it puts back what it found."""
    want = {m and m.name: wanted(model, m)[0] for m in (HALF, FEW, None)}
    vtc.apply(model, HALF)
    with vtc.compress(model, HALF):
        vtc.apply(model, FEW)
        assert tokens(model) == want[FEW.name]
        vtc.remove(model)
        assert tokens(model) == want[None]
    assert tokens(model) == want[HALF.name]
    vtc.remove(model)
    assert "_vtc" not in vars(model) and tokens(model) == want[None]


def test_a_context_manager_of_the_users_own(model: nn.Module) -> None:
    """A block entered by a function that hands back control counts, also inside another block."""
    want = {m.name: wanted(model, m)[0] for m in (HALF, FEW)}

    @contextmanager
    def few() -> Iterator[None]:
        with vtc.compress(model, FEW):
            yield

    with few():
        assert tokens(model) == want[FEW.name]
    with vtc.compress(model, HALF):
        with few():
            assert tokens(model) == want[FEW.name]
        assert tokens(model) == want[HALF.name]
    assert "_vtc" not in vars(model)


def test_generators_with_a_context_manager_of_the_users_own(model: nn.Module) -> None:
    """The block belongs to the generator that entered it, although another function did so for it."""
    want = {m.name: wanted(model, m)[0] for m in (HALF, FEW)}

    @contextmanager
    def under(method: Any) -> Iterator[None]:
        with vtc.compress(model, method):
            yield

    def stream(method: Any) -> Iterator[list[int]]:
        with under(method):
            yield []
            yield tokens(model)

    first, second = stream(HALF), stream(FEW)
    next(first), next(second)
    assert next(first) == want[HALF.name] and next(second) == want[FEW.name]
    first.close(), second.close()
    assert "_vtc" not in vars(model)


@pytest.mark.parametrize("left", [False, True])
def test_generation_that_starts_behind_its_block(model: nn.Module, left: bool) -> None:
    """It runs under the settings it was fetched under, also when the block ends half-way."""
    want, bare = wanted(model, HALF)[0], wanted(model, None)[0]
    before = tiny.snapshot(model)
    go, out = threading.Event(), []

    def work(function: Any) -> None:
        go.wait()
        out.append(function(**BATCH, **GREEDY)[0, -NEW:].tolist())

    with vtc.compress(model, HALF) as run:
        thread = threading.Thread(target=work, args=(model.generate,))
        thread.start()
        if not left:
            go.set()
    go.set()
    thread.join()
    assert out == [want] and len(run.reports) == 1
    assert tiny.snapshot(model) == before and tokens(model) == bare


def test_the_main_thread_is_bare_outside_of_all_blocks(model: nn.Module) -> None:
    """Whatever is open in other threads, whenever its generate was fetched."""
    bare = wanted(model, None)[0]
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with vtc.compress(model, HALF):
            entered.set()
            leave.wait()

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait()
    fetched = model.generate
    assert tokens(model) == bare
    assert fetched(**BATCH, **GREEDY)[0, -NEW:].tolist() == bare
    leave.set()
    thread.join()
    assert fetched(**BATCH, **GREEDY)[0, -NEW:].tolist() == bare


@pytest.mark.parametrize("method", [Norms(0.5), Attended(0.5)], ids=lambda m: m.name)
def test_cold_start(method: Any) -> None:
    """N threads equal N calls in a row, also where the model has never run before."""
    batches = [tiny.inputs("next-clip", tiny.MIXED, seed=s) for s in range(4)]
    reference = tiny.build("next-clip")
    want = [
        [by_hand.greedy(reference, row, NEW)[0] for row in by_hand.rows(reference, batch, method)]
        for batch in batches
    ]
    old = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(3):
            model = tiny.build("next-clip")
            handle = vtc.apply(model, method)
            start, out = threading.Barrier(len(batches)), [None] * len(batches)

            def run(index: int, model: Any, handle: Any, start: Any, out: Any) -> None:
                start.wait()
                try:
                    with handle.call() as call:
                        got = model.generate(**batches[index], **GREEDY)[:, -NEW:].tolist()
                    out[index] = got, len(call.reports), call.report
                except BaseException as error:  # noqa: BLE001
                    out[index] = error

            threads = [
                threading.Thread(target=run, args=(i, model, handle, start, out))
                for i in range(len(batches))
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for got, tokens_ in zip(out, want, strict=True):
                assert isinstance(got, tuple), got
                assert got[:2] == (tokens_, 1)
            assert {id(got[2]) for got in out} == {id(r) for r in handle.reports}
    finally:
        sys.setswitchinterval(old)


def test_the_report_of_ones_own_call(model: nn.Module) -> None:
    """`call` collects what its own code did, on a handle that others use as well."""
    handle = vtc.apply(model, HALF)
    with handle.call() as call:
        with pytest.raises(VTCError, match="report"):
            call.report  # noqa: B018
        tokens(model)
    logits(model)
    assert len(handle.reports) == 2 and call.reports == handle.reports[:1]
    assert call.report is handle.reports[0] and call.compaction is not None
    assert handle.active, "a call is no block that takes the patch off"
    vtc.remove(model)


def test_a_handle_says_what_it_is(model: nn.Module) -> None:
    """Method, settings, model, reports."""
    with vtc.compress(model, HALF) as run:
        tokens(model)
        text = repr(run)
    assert HALF.name in text and "retention=0.5" in text and type(model).__name__ in text
    assert "1 report" in text and "not active" in repr(run)
