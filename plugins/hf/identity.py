"""Whether a part that was trained for one model is put on that model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vtc.errors import VTCError
from vtc.plugins.hf.adapters.base import Adapter
from vtc.plugins.hf.typing import Model
from vtc.plugins.model.identity import identity, is_identity, same


def identity_of(model: Model, adapter: Adapter) -> dict[str, Any]:
    """See `vtc.plugins.model.identity`: of the projector's first matrix, or of the input embedding of a
    model without projector."""
    projector = adapter.projector(model.base_model)
    source = model.get_input_embeddings() if projector is None else projector
    matrices = (p for p in source.parameters() if p.dim() > 1 and p.is_floating_point())
    return identity(str(model.config.model_type), next(matrices, None))


def check_made_for(model: Model, adapter: Adapter, name: str, made_for: Mapping[str, Any]) -> None:
    """Raise `VTCError` where a method's trained part was made for another model."""
    if not is_identity(made_for):
        raise VTCError(
            f"method: {name!r} has a part whose made_for is {made_for!r}, allowed are None and what "
            "vtc.plugins.model.identity gives, as `vtc train-scorer` writes it"
        )
    mine = identity_of(model, adapter)
    if not same(made_for, mine):
        which = made_for["model_type"]
        other = "another" if which == mine["model_type"] else f"a {which!r}, this is a"
        raise VTCError(
            f"method: {name!r} has a part that was trained for {other} {mine['model_type']!r} model "
            "(the weights of the projector differ); train one for this model, or give the method "
            "without it"
        )
