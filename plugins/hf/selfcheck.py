"""On a version of transformers that no test has seen, compression is checked before it is trusted.

A renamed argument is enough to make answers silently wrong, so the first model of a family waits until a
tiny random one of the same family has decoded right under compression, which takes a fraction of a
second. On tested versions nothing is run.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import transformers
from torch import nn

from vtc.errors import VTCError
from vtc.plugins import hf
from vtc.plugins.hf.typing import Model

#: model class -> what goes wrong with it, None for nothing
_FOUND: dict[type, str | None] = {}
# Whoever comes second waits for the outcome; the check itself may come in again
_LOCK = threading.RLock()
_CHECKING: ContextVar[bool] = ContextVar("vtc_checking", default=False)


@contextmanager
def checking() -> Iterator[None]:
    """Inside the block `check_once` does nothing: what is put on models is being checked."""
    token = _CHECKING.set(True)
    try:
        yield
    finally:
        _CHECKING.reset(token)


def check_once(model: Model) -> None:
    """Check the family of `model` if the installed version is untested and it was not checked before.

    The caller's random numbers, threads, grad mode, autocast, default device and dtype stay as they are.

    Raises:
        VTCError: decoding under compression is wrong.
    """
    if _CHECKING.get() or hf.version_note(transformers.__version__) is None:
        return
    family = type(model)
    with _LOCK:
        if family not in _FOUND:
            with checking(), torch.device("cpu"), torch.autocast("cpu", enabled=False):
                _FOUND[family] = _fault(model)
    if _FOUND[family] is not None:
        raise VTCError(
            f"transformers: {transformers.__version__} is installed, vtc was tested with {hf.TESTED[0]} "
            f"to {hf.TESTED[1]}, and here a tiny {family.__name__} under compression is wrong: "
            f"{_FOUND[family]}. `vtc doctor` says more; install a tested version"
        )


def _fault(model: Model) -> str | None:
    """What goes wrong with a tiny model of the family, or with a tiny LLaVA where there is none."""
    from vtc.plugins.hf import tiny  # it and `checks` need `patch`, which needs this file
    from vtc.plugins.hf.checks import agreement
    from vtc.plugins.hf.checks.outcome import Differs, NotRun, first_line
    from vtc.plugins.hf.checks.subject import ONE, tiny_subject

    family = type(model).__name__
    makes: list[Callable[[], nn.Module]] = [
        lambda: tiny.same_family(model),
        lambda: tiny.build("llava"),
    ]
    for make in makes:
        try:
            subject = tiny_subject(family, make(), rows=ONE, steps=2)
        except Exception:  # whatever a class says to sizes that are not its own
            continue
        try:
            agreement.decoding(subject)
            return None
        except (NotRun, VTCError):
            continue
        except Differs as difference:
            return str(difference)
        except Exception as error:
            return f"{type(error).__name__}: {first_line(error)}"
    warnings.warn(
        f"no tiny {family} can be made to check compression with; `vtc doctor --model` "
        "checks the model itself",
        stacklevel=4,
    )
    return None
