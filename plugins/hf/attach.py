"""What a patched model carries, and how it goes on and comes off.

All on the instance, nothing on a class: the attribute `_vtc` (a `scopes.State`), hooks (see `hooks` of
`stages` and `docowl`), where prompts are shortened a `generate` and a list of the
tower's layers that can end early, and a shadow config or a hook on each probed vision attention module.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

from torch import nn

from vtc.plugins.hf import probe
from vtc.plugins.hf.docowl import stage as docowl
from vtc.plugins.hf.hooks import hang, is_hung, take_off
from vtc.plugins.hf.live_layers import LiveLayers
from vtc.plugins.hf.scopes import State, state_of
from vtc.plugins.hf.stages import cross_attention
from vtc.plugins.hf.stages.boundary import intercept

#: how a family's models are wrapped, by `Adapter.mechanism`
_MECHANISMS = {"boundary": intercept, "crossed": cross_attention, "expanded": docowl}


def sync(model: nn.Module, state: State) -> None:
    """Put on the model what its patches need, or take everything off; `LOCK` is held."""
    patches = state.patches
    for patch in state.attached:
        if patch not in patches:
            patch.text_encoder = None  # its handle may outlive it by far
    for patch in patches:
        patch.equip(model)
    state.attached = patches
    if not patches:
        if state_of(model) is not None:
            take_off_everything(model)
            if state.blocks:
                model._vtc = state
        return
    model._vtc = state
    base = model.base_model
    mechanism = _MECHANISMS[patches[0].adapter.mechanism]
    hang(hook for hook in mechanism.hooks(model, patches[0].adapter) if not is_hung(hook))
    for patch in patches:
        for module, layer in patch.probed:
            probe.attach(module, layer)
        if getattr(base.config, "vision_feature_layer", None) is not None:
            for modality, layers in patch.layers.items():
                if len(layers):
                    LiveLayers.put_on(*patch.adapter.layer_list(base, modality))
    if mechanism is intercept and hasattr(model, "generate"):
        mine = model.__dict__.get("generate")
        if not _is_ours(mine):
            state.own_generate = mine
        alone = state.blocks[0] if len(state.blocks) == 1 else None
        # Not a bound method: unpickling would look it up on the class
        model.generate = functools.partial(intercept.generate, model, fetched=alone)


def _is_ours(generate: Any) -> bool:
    """Whether an instance's `generate` is ours, or wraps it."""
    return getattr(inspect.unwrap(generate), "func", None) is intercept.generate


def take_off_everything(model: nn.Module) -> None:
    """Leave no hook, attribute or config of ours on any module of `model`.

    Every module is looked at: other libraries may have copied one that carried a hook (PEFT does).
    """
    state = model._vtc
    for module in model.modules():
        take_off(module, *intercept.FUNCTIONS, *cross_attention.FUNCTIONS, *docowl.FUNCTIONS)
        probe.detach(module)
        LiveLayers.take_off(module)
    if _is_ours(model.__dict__.get("generate")):
        del model.generate
        if state.own_generate is not None:
            model.generate, state.own_generate = state.own_generate, None
    del model._vtc
