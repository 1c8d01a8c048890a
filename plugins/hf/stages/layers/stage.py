"""The stage inside the language model: layers behind a cut run on fewer tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vtc.errors import VTCError
from vtc.methods.base import Method
from vtc.plugins.hf.hooks import Hook, hang, is_hung, take_off
from vtc.plugins.hf.stages.base import register_stage, stage_named
from vtc.plugins.hf.stages.layers.hooks import before_layer, enter, leave, settle
from vtc.plugins.hf.stages.layers.plan import cuts_of
from vtc.plugins.hf.typing import Model
from vtc.registry import create_method

if TYPE_CHECKING:
    from vtc.plugins.hf.patch import Patch


@register_stage
class Layers:
    """On the model, its language model and their layers are hooks, no more.

    What a prompt shows is known at the boundary, so its stage is on the model too; where no method works
    there it keeps every token.
    """

    name: ClassVar[str] = "layers"
    where: ClassVar[str] = "layers"
    functions = (enter, leave, settle, before_layer)

    def check(self, model: Model, patch: Patch, method: Method) -> None:
        from vtc.methods.layer_method import LayerMethod

        if not isinstance(method, LayerMethod):
            raise VTCError(
                f"method: {method.name!r} works inside the language model and is no LayerMethod"
            )
        if not patch.at_boundary:
            patch.lead(stage_named("boundary"), create_method("none"))
            patch.stages[0].check(model, patch, patch.method)
        lm = patch.adapter.language_model(model.base_model)
        cuts_of(method, len(lm.layers))
        for layer in lm.layers:
            attention = getattr(layer, "self_attn", None)
            if not hasattr(attention, "layer_idx") or not hasattr(layer, "input_layernorm"):
                raise VTCError(
                    f"model: {type(layer).__name__} of {type(model).__name__} is not built as "
                    "transformers builds decoder layers (self_attn with a layer_idx behind an "
                    "input_layernorm), so nothing can be cut in front of it"
                )
        patch.inside = method

    def _hooks(self, model: Model, patch: Patch) -> list[Hook]:
        lm = patch.adapter.language_model(model.base_model)
        # in front of the hook that adds a bias to a layer's mask: it has to see the mask that is left
        layers = [Hook(layer, "forward_pre", before_layer, first=True) for layer in lm.layers]
        behind = [Hook(module, "forward", settle, always=True) for module in (lm, model)]
        return [Hook(lm, "forward_pre", enter), Hook(lm, "forward", leave), *behind, *layers]

    def attach(self, model: Model, patch: Patch) -> None:
        hang(hook for hook in self._hooks(model, patch) if not is_hung(hook))

    def detach(self, model: Model) -> None:
        for module in model.modules():
            take_off(module, *self.functions)
