"""Who takes a model: transformers' plug-in, or one that another package brings.

A package brings one by an entry point of the group `vtc.plugins` that names a `Backend`. Those are asked
first, in the order of their names; what nobody takes is transformers'.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from vtc import doors

if TYPE_CHECKING:
    from vtc.config import CompressionConfig
    from vtc.methods.base import Method
    from vtc.plugins.model.compaction import Compaction
    from vtc.report import Report

    #: what a caller may give as a method
    Plan: TypeAlias = str | Method | Sequence[str | Method] | CompressionConfig


class Call(Protocol):
    """What `with handle.call() as call` collects."""

    reports: list[Report]
    compaction: Compaction | None

    @property
    def report(self) -> Report:
        """The last report.

        Raises:
            VTCError: the model read no images inside the block.
        """


class Handle(Protocol):
    """A patch for a model: a context manager, or `remove()` what `vtc.apply` put on.

    Attributes:
        model: that it is for.
        reports: one `Report` for every prefill with images, the last 1000.
        compaction: how the last prompt was shortened, None where it was not.
        method: on the model, of several the first.
        text_encoder: what a text-guided method reads the question with.
        active: whether the patch is on the model.
    """

    model: Any

    @property
    def reports(self) -> list[Report]: ...

    @property
    def compaction(self) -> Compaction | None: ...

    @property
    def method(self) -> Method: ...

    @property
    def text_encoder(self) -> Any: ...

    @property
    def active(self) -> bool: ...

    def call(self) -> AbstractContextManager[Call]:
        """A block whose calls report to the `Call` that is yielded as well."""

    def remove(self) -> None:
        """Take the patch off."""

    def __enter__(self) -> Handle: ...

    def __exit__(self, *exception: object) -> None: ...


class Backend(Protocol):
    """A plug-in for a library of models; `vtc.compress`, `apply` and `remove` hand over to it."""

    def takes(self, model: Any) -> bool:
        """Whether the model is one of its library; must not import that library to say no."""

    def plan(
        self, model: Any, method: Plan, *, processor: Any, positions: str | None, **options: Any
    ) -> Handle:
        """See `vtc.compress`."""

    def apply(
        self, model: Any, method: Plan, *, processor: Any, positions: str | None, **options: Any
    ) -> Handle:
        """See `vtc.apply`."""

    def remove(self, model: Any) -> None:
        """See `vtc.remove`."""


def backend_for(model: Any) -> Backend:
    """The plug-in that takes a model."""
    for backend in _installed():
        if backend.takes(model):
            return backend
    from vtc.plugins.hf import apply

    return apply


@functools.lru_cache(maxsize=1)
def _installed() -> tuple[Backend, ...]:
    """The plug-ins of other packages."""
    return tuple(doors.load_all(doors.PLUGINS))
