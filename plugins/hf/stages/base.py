"""`Stage`: a place where tokens are cut.

A stage says by itself what it needs of a model and refuses what it cannot do; it puts what it needs on
a model and takes it off. Which stages a family's models have, in the order in which tokens pass them, is
in `Adapter.stages`. A new one is a file that registers itself here: none of the others needs to know.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar

from vtc.errors import VTCError
from vtc.methods.base import Method
from vtc.plugins.hf.adapters.base import Adapter
from vtc.plugins.hf.typing import Model
from vtc.registry import entry, put

if TYPE_CHECKING:
    from vtc.plugins.hf.patch import Patch


class Stage(Protocol):
    """A place where tokens are cut; one object for all models.

    Attributes:
        name: as in `Adapter.stages`.
        where: of the methods that it takes, see `Method.where`.
    """

    name: ClassVar[str]
    where: ClassVar[str]

    def check(self, model: Model, patch: Patch, method: Method) -> None:
        """Settle on `patch` what the calls of `method` need; nothing is changed on the model.

        Raises:
            VTCError: the model or the method is none for this stage.
        """

    def attach(self, model: Model, patch: Patch) -> None:
        """Put on the model what a patch needs here; done again, nothing changes."""

    def detach(self, model: Model) -> None:
        """Take off whatever `attach` put on, also what somebody has copied since."""


#: `Method.where` in words
_PLACES = {
    "pixels": "front of the vision tower",
    "boundary": "front of the language model",
    "layers": "the layers of the language model",
}
_STAGES: dict[str, Stage] = {}
S = TypeVar("S", bound="type[Stage]")


def register_stage(cls: S) -> S:
    """Class decorator: make a stage known by its name.

    Raises:
        VTCError: another class has the name.
    """
    stage = cls()
    put(_STAGES, "stage", stage.name, stage)
    return cls


def stage_named(name: str) -> Stage:
    """The stage of that name.

    Raises:
        VTCError: there is none.
    """
    return entry(_STAGES, "stage", name)


def stages_for(adapter: Adapter, methods: Sequence[Method]) -> list[tuple[Stage, Method]]:
    """The stage of each method, in the order in which tokens pass them.

    Raises:
        VTCError: the family has no stage for one of them.
    """
    stages = [stage_named(name) for name in adapter.stages]
    for method in methods:
        if all(stage.where != method.where for stage in stages):
            place = _PLACES.get(method.where, method.where)
            raise VTCError(
                f"method: {method.name!r} works in {place}, "
                f"{adapter.unstaged or 'and this version has no stage for that'}"
            )
    return [(s, method) for s in stages for method in methods if s.where == method.where]
