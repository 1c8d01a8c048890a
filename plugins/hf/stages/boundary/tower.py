"""Running a model's own vision encoder outside of the model's forward."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vtc.errors import VTCError
from vtc.plugins.hf.adapters.base import Call
from vtc.plugins.hf.live_layers import only_first
from vtc.plugins.hf.probe import recording
from vtc.plugins.hf.typing import Model
from vtc.plugins.model.layers import feature_layer, layers_read

if TYPE_CHECKING:
    from vtc.plugins.hf.patch import Patch


def run_encoder(
    patch: Patch,
    base: Model,
    kwargs: dict[str, Any],
    modality: str,
    ids: Tensor | None,
    placeholder: Tensor,
    more: Mapping[str, Any],
) -> Call:
    """One call of the model's own encoder, heard by the probes.

    Args:
        more: arguments that the encoder is given besides, or in place of the call's.
    """
    function = getattr(patch.adapter.encoder(base, kwargs), f"get_{modality}_features")
    accepted = inspect.signature(function).parameters
    arguments = {k: v for k, v in kwargs.items() if k in accepted and v is not None}
    if patch.reads_hidden:
        arguments["output_hidden_states"] = True
    arguments.update(more)
    for name, parameter in accepted.items():
        if (
            parameter.default is parameter.empty
            and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ):
            if name not in arguments:
                raise VTCError(
                    f"{name}: got None, {type(base).__name__} needs it beside the pixels"
                )
    layers = {layer for _, layer in patch.probed}
    with recording(layers) as record, _live_layers(patch, base, arguments):
        output = function(**arguments, return_dict=True)
    # The model's forward wants what its encoder returned: a list of images, or one tensor
    patch.tensors[modality] = isinstance(output.pooler_output, Tensor)
    return Call(base.config, modality, kwargs, ids, placeholder, base, output, record)


@contextmanager
def awake(base: Model) -> Iterator[None]:
    """Load what accelerate has off-loaded: the encoder runs outside the inner model's forward."""
    hook = getattr(base, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(base)
    try:
        yield
    finally:
        if hook is not None:
            hook.post_forward(base, None)


@contextmanager
def _live_layers(patch: Patch, base: Model, arguments: dict[str, Any]) -> Iterator[None]:
    """Leave out the encoder layers that nobody reads, see `live_layers.py`."""
    found = feature_layer(base.config, arguments)
    if found is None:
        yield
        return
    name, layer = found
    wanted = layers_read(layer, patch.depth)
    live = max(*wanted, patch.deepest + 1, 1)
    if live >= patch.depth:
        yield
        return
    # From the front, since counting from the back would now start at another layer
    arguments[name] = wanted[0] if isinstance(layer, int) else wanted
    with only_first(live):
        yield
