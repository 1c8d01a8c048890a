"""The reference model runs on one thread, whoever runs it.

Its products are so small that two threads wait for each other more than they compute: by half on a
quiet machine, tenfold and more on a busy one, where the waiting thread sits out the time slices of
other processes. So each call of the model runs on one thread, with what a method does in it, and
afterwards the process has the threads that it had: setting the number when the model is loaded would
slow down everything else in the process, for good.

Whoever has chosen a number is not overruled, be it by `OMP_NUM_THREADS` or `MKL_NUM_THREADS` or by
`torch.set_num_threads`, as far as the number is none that torch itself begins with here.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import LlavaNextForConditionalGeneration as _LlavaNext

CHOSEN = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")

_LOCK = threading.Lock()
_LOCAL = threading.local()  # `inside`: whether this Python thread is in a block already
_inside, _before = 0, 1  # Python threads in a block, and torch's threads before the first of them


def _defaults() -> set[int]:
    """The numbers of threads that torch may begin with: CPUs, or cores of two CPUs each."""
    counts = {os.cpu_count() or 1}
    if hasattr(os, "sched_getaffinity"):
        counts.add(len(os.sched_getaffinity(0)))
    return counts | {max(1, count // 2) for count in counts}


def _left_alone() -> bool:
    if any(os.environ.get(name) for name in CHOSEN):
        return True
    return not _inside and torch.get_num_threads() not in _defaults()


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread inside, unless the user has chosen a number of threads."""
    global _inside, _before
    with _LOCK:
        nothing = getattr(_LOCAL, "inside", False) or _left_alone()
        if not nothing:
            _before = _before if _inside else torch.get_num_threads()
            _inside += 1
    if nothing:
        yield
        return
    _LOCAL.inside = True
    torch.set_num_threads(1)
    try:
        yield
    finally:
        # While another Python thread is inside as well: what OpenMP takes is every one's own, and
        # the last to leave sets the number again
        torch.set_num_threads(_before)
        _LOCAL.inside = False
        with _LOCK:
            _inside -= 1


class _OnOneThread:
    """A function that runs on one thread; a class, so that a model that holds it can be pickled."""

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function, updated=())
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with one_thread():
            return self.function(*args, **kwargs)


def on_one_thread(model: _LlavaNext) -> LlavaNextForConditionalGeneration:
    """A loaded model, made one that runs on one thread.

    It was loaded as the class of transformers, which finds by it how a checkpoint's names have changed.
    """
    model.__class__ = LlavaNextForConditionalGeneration
    return model  # type: ignore[return-value]


class LlavaNextForConditionalGeneration(_LlavaNext):
    """LLaVA-NeXT on one thread, under the name of its class: that is what it is in every other way."""

    @classmethod
    def is_custom_code(cls) -> bool:
        """No: transformers saves it by the same names."""
        return False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return super().__call__(*args, **kwargs)
        with one_thread():  # around the hooks of a method, too
            return super().__call__(*args, **kwargs)

    @functools.wraps(_LlavaNext.generate)
    def generate(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        with one_thread():
            return super().generate(*args, **kwargs)  # type: ignore[misc]

    def __setattr__(self, name: str, value: Any) -> None:
        # a method on the model puts its own in place, which encodes the images first
        mine: Any = _OnOneThread(value) if name == "generate" else value
        super().__setattr__(name, mine)

    @staticmethod
    def threads() -> int:
        """On how many threads it runs."""
        with one_thread():
            return torch.get_num_threads()
