"""In front of the vision tower: pictures get smaller.

The stage at the boundary runs the tower, so it is there that pixels are replaced
(`boundary/pictures.py`); this one says which models it works on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vtc.methods.base import Method
from vtc.plugins.hf.stages.base import register_stage
from vtc.plugins.hf.typing import Model
from vtc.plugins.model.smaller.families import resizer

if TYPE_CHECKING:
    from vtc.plugins.hf.patch import Patch


@register_stage
class Pixels:
    """Nothing of it is on a model."""

    name: ClassVar[str] = "pixels"
    where: ClassVar[str] = "pixels"

    def check(self, model: Model, patch: Patch, method: Method) -> None:
        resizer(model.base_model.config)

    def attach(self, model: Model, patch: Patch) -> None:
        pass

    def detach(self, model: Model) -> None:
        pass
