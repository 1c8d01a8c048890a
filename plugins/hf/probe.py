"""Read queries and keys of chosen vision layers without touching how attention is computed.

transformers picks the attention function by name from `module.config`. A probed module gets a shallow
copy of its config that names our function; it notes the queries and keys and calls the function that
the module would have called, so features stay bit-identical and SDPA or FlashAttention stay in use.
Remote code with attention of its own (mPLUG-Owl) is read by a hook that runs its projection once more.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vtc.plugins.hf.hooks import Hook, hang, take_off
from vtc.plugins.hf.typing import Model
from vtc.plugins.model.signals import Heads


@dataclass
class Record:
    """What one pass of the vision tower left behind.

    Attributes:
        wanted: the layers that are recorded; other calls on the same model may probe others.
        attention: layer -> its calls in order; a tower may attend image by image, frame by frame or
            window by window.
        projector_input: what the projector was given, `[B, N, C]`.
        projector_output: what it returned, `[B, N, D]`.
    """

    wanted: frozenset[int] = frozenset()
    attention: dict[int, list[Heads]] = field(default_factory=dict)
    projector_input: Tensor | None = None
    projector_output: Tensor | None = None


# Per thread and task: two models that run in two threads never see each other's record.
_RECORD: ContextVar[Record | None] = ContextVar("vtc_record", default=None)


@contextmanager
def recording(wanted: Iterable[int]) -> Iterator[Record]:
    """Collect what the probes of the layers `wanted` see inside the block."""
    record = Record(frozenset(wanted))
    token = _RECORD.set(record)
    try:
        yield record
    finally:
        _RECORD.reset(token)


def noted_of(layer: int) -> list[Heads] | None:
    """Where the calls of a layer are noted in this context; None while nobody records that layer."""
    record = _RECORD.get()
    if record is None or layer not in record.wanted:
        return None
    return record.attention.setdefault(layer, [])


def _probe(
    module: Model,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any = None,
    **kw: Any,
) -> Any:
    shadow = module.config
    real = getattr(shadow, "vtc_config", shadow)  # another thread may just have taken the probe off
    calls = noted_of(getattr(shadow, "vtc_layer", -1))
    if calls is not None:
        scale = kw.get("scaling") or query.shape[-1] ** -0.5
        borders = kw.get("cu_seq_lens_q")
        if borders is None:
            calls.append(Heads(query, key, scale, attention_mask))
        else:  # FlashAttention takes several sequences in one call
            lengths = borders.diff().tolist()
            parts = zip(query.split(lengths, 2), key.split(lengths, 2), strict=True)
            calls.extend(Heads(q, k, scale) for q, k in parts)
    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    function = ALL_ATTENTION_FUNCTIONS.get_interface(real._attn_implementation, eager)
    # FlashAttention reads its own name from the module. A shallow copy tells it, since another thread
    # may be running the module itself.
    twin = copy.copy(module)
    twin.config = real
    return function(twin, query, key, value, attention_mask, **kw)


# transformers asks "is flash attention meant?" by looking for the word in the name
_NAMES = ("vtc_probe", "vtc_probe_flash")
for _name in _NAMES:
    AttentionInterface.register(_name, _probe)


def attach(module: Model, layer: int) -> None:
    """Make `module` (an attention module of encoder layer `layer`) report to `recording()`."""
    if hasattr(module, "query_key_value"):
        if not hasattr(module, "_vtc_layer"):
            module._vtc_layer = layer
            hang([Hook(module, "forward_pre", _note_fused)])
        return
    real = module.config
    if hasattr(real, "vtc_config"):
        return
    shadow = copy.copy(real)
    shadow._attn_implementation_internal = _NAMES["flash" in (real._attn_implementation or "")]
    shadow.vtc_layer = layer
    shadow.vtc_config = real
    module.config = shadow


def detach(module: nn.Module) -> None:
    """Take away what `attach` brought, if anything: `module` has the very config object back that it
    had."""
    held = vars(module)
    if "_vtc_layer" in held:
        take_off(module, _note_fused)
        del module._vtc_layer
    real = getattr(held.get("config"), "vtc_config", None)
    if real is not None:
        module.config = real


@torch.no_grad()
def _note_fused(module: Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Forward pre-hook for attention whose one projection gives query, key and value head by head."""
    calls = noted_of(module._vtc_layer)
    if calls is None:
        return
    hidden = args[0] if args else kwargs["hidden_states"]
    fused = module.query_key_value(hidden).unflatten(-1, (module.num_heads, 3, -1))
    query, key = (fused[..., i, :].transpose(1, 2) for i in (0, 1))
    calls.append(Heads(query, key, module.scale))


def note_projector(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
) -> None:
    """Forward hook for the projector."""
    record = _RECORD.get()
    if record is not None:
        record.projector_input, record.projector_output = args[0], output
