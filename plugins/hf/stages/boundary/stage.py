"""The stage at the boundary: a placeholder for every token, and a prompt that gets shorter."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, ClassVar

import transformers

from vtc.errors import VTCError
from vtc.methods.base import Method
from vtc.plugins.hf import arguments
from vtc.plugins.hf.adapters.base import Adapter
from vtc.plugins.hf.hooks import Hook, hang, is_hung
from vtc.plugins.hf.live_layers import LiveLayers
from vtc.plugins.hf.probe import note_projector
from vtc.plugins.hf.scopes import state_of
from vtc.plugins.hf.stages.base import register_stage
from vtc.plugins.hf.stages.boundary import proportional
from vtc.plugins.hf.stages.boundary.intercept import generate, post_hook, pre_hook
from vtc.plugins.hf.stages.encoder import EncoderStage
from vtc.plugins.hf.typing import Model
from vtc.plugins.model.layers import feature_layer

if TYPE_CHECKING:
    from vtc.plugins.hf.patch import Patch


@register_stage
class Boundary(EncoderStage):
    """On the model are hooks, a `generate`, and a list of the tower's layers that can end early."""

    name: ClassVar[str] = "boundary"
    functions = (
        note_projector,
        pre_hook,
        post_hook,
        proportional.settle,
        proportional.begin,
        proportional.bias_layer,
    )
    weighs: ClassVar[bool] = True
    cleaners = (*EncoderStage.cleaners, LiveLayers.take_off)

    def hooks(self, model: Model, adapter: Adapter) -> list[Hook]:
        projector = adapter.projector(model.base_model)
        return [
            *([] if projector is None else [Hook(projector, "forward", note_projector)]),
            Hook(model, "forward_pre", pre_hook),
            Hook(model, "forward", post_hook),
        ]

    def check(self, model: Model, patch: Patch, method: Method) -> None:
        if not arguments.takes(model, "mm_encoder_outputs"):
            raise VTCError(
                f"transformers: {transformers.__version__} is installed, needed is >= 5.18 "
                "(its models take no mm_encoder_outputs before)"
            )
        super().check(model, patch, method)
        if method.weighs:
            lm = patch.adapter.language_model(model.base_model)
            proportional.check(model, lm, patch.adapter.stages)

    def attach(self, model: Model, patch: Patch) -> None:
        super().attach(model, patch)
        base = model.base_model
        if patch.method.weighs:
            more = proportional.hooks(model, patch.adapter.language_model(base))
            hang(hook for hook in more if not is_hung(hook))
        if feature_layer(base.config) is not None:
            for modality, layers in patch.layers.items():
                if len(layers):
                    LiveLayers.put_on(*patch.adapter.layer_list(base, modality))
        state = state_of(model)
        if state is not None and hasattr(model, "generate"):
            mine = model.__dict__.get("generate")
            if not _is_ours(mine):
                state.own_generate = mine
            alone = state.blocks[0] if len(state.blocks) == 1 else None
            # Not a bound method: unpickling would look it up on the class
            model.generate = functools.partial(generate, model, fetched=alone)

    def detach(self, model: Model) -> None:
        super().detach(model)
        state = state_of(model)
        if _is_ours(model.__dict__.get("generate")):
            del model.generate
            if state is not None and state.own_generate is not None:
                model.generate, state.own_generate = state.own_generate, None


def _is_ours(function: Any) -> bool:
    """Whether an instance's `generate` is ours, or wraps it."""
    return getattr(inspect.unwrap(function), "func", None) is generate
