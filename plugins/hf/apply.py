"""Put a method on a live model and take it off again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from vtc.config import CompressionConfig
from vtc.errors import VTCError
from vtc.methods.base import Method
from vtc.methods.none import NoCompression
from vtc.plugins.hf.adapters import adapter_for
from vtc.plugins.hf.attach import sync
from vtc.plugins.hf.defaults import completed, create_for
from vtc.plugins.hf.handle import Handle
from vtc.plugins.hf.patch import Patch
from vtc.plugins.hf.scopes import LOCK, State, state_of
from vtc.plugins.hf.selfcheck import check_once
from vtc.plugins.hf.stages.base import stages_for
from vtc.plugins.hf.text_encoder import load_tokenizer
from vtc.plugins.hf.typing import Model
from vtc.plugins.model.positions import check_policy
from vtc.several import in_front, names_of, settled

if TYPE_CHECKING:
    from vtc.plugins.backends import Plan


def takes(model: Any) -> bool:
    """Whether a model is one of PyTorch's; which of them are supported, `apply` says."""
    return isinstance(model, nn.Module)


def apply(
    model: Model,
    method: Plan,
    *,
    processor: Any = None,
    positions: str | None = None,
    **options: Any,
) -> Handle:
    """Compress the visual tokens of `model` from now on; a patch already there is replaced.

    Args:
        model: a transformers vision-language model, or a PEFT model around one.
        method: name, `Method`, or `CompressionConfig`; or a list of methods that work one behind the
            other, by name `"a+b"`. Options that are not given are those that the model brings
            (`defaults.py`); a `Method` has those that are not None given.
        processor: processor or tokenizer, read by text-guided methods; by default the one beside the
            model's weights.
        positions: `"original"` (default), `"contiguous"` or `"regrid"`, see `positions.py`. A model
            that counts positions itself has only one policy, which is its default.
        options: hyper-parameters, when `method` is a name; of `"resize+b"` those of `resize`, and the
            budget of both.

    Raises:
        VTCError: before the model is touched.
    """
    handle = plan(model, method, processor=processor, positions=positions, **options)
    model, patch = handle.model, handle._patch
    handle._used = True
    with LOCK:
        state = state_of(model) or State()
        block = state.own_block()
        if block is None:
            handle._found, state.patch = state.patch, patch
        else:
            block.patch = patch
        sync(model, state)
    return handle


def plan(
    model: Model,
    method: Plan,
    *,
    processor: Any = None,
    positions: str | None = None,
    **options: Any,
) -> Handle:
    """A handle whose blocks compress `model`, which is not touched before one is entered.

    Args, Raises: as `apply`.
    """
    model = _inner_most(model)
    resolved, policy = _resolve(model, method, positions, options)
    patch = _plan(model, resolved, policy, processor)
    if patch.positions != policy and (positions is not None or policy != "original"):
        raise VTCError(f"positions: got {policy!r}, but {patch.notes[0]}")
    check_once(model)
    return Handle(model, patch)


def remove(model: Model) -> None:
    """Take any patch off `model`; nothing happens when there is none.

    In a block, calls made there run bare from now on, and leaving it puts back what it found.
    """
    model = _inner_most(model)
    state = state_of(model)
    if state is None:
        return
    with LOCK:
        block = state.own_block()
        if block is None:
            for each in state.blocks:
                each.suspended = None
            state.blocks, state.patch = [], None
        else:
            block.suspended = block.suspended or state.patch
            block.patch = state.patch = None
        sync(model, state)


def _inner_most(model: Model) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise VTCError(f"model: got {type(model).__name__}, allowed is a transformers model")
    for part in ("_orig_mod", "module"):  # torch.compile, DataParallel
        if isinstance(model._modules.get(part), nn.Module):
            raise VTCError(
                f"model: got {type(model).__name__}, a wrapper; give the model itself, its .{part}"
            )
    unwrap = getattr(model, "get_base_model", None)  # PEFT
    return unwrap() if callable(unwrap) else model


def _resolve(
    model: Model, method: Plan, positions: str | None, options: dict[str, Any]
) -> tuple[list[Method], str]:
    """The methods, with what the model brings for them, and the position policy."""
    if isinstance(method, str) and "+" not in method:
        return [create_for(model, method, options)], check_policy(positions or "original")
    front = in_front(names_of(method)) if isinstance(method, str) else None
    if options and front is None:
        got = repr(method) if isinstance(method, str) else type(method).__name__
        raise VTCError(
            f"{next(iter(options))}: options go with a method's name; got {got}; of several methods, "
            "each is given its own: [Method(...), Method(...)]"
        )
    policy = positions or "original"
    if isinstance(method, CompressionConfig):
        policy = positions or method.positions
        methods = [create_for(model, name, fields) for name, fields in method.parts()]
    else:
        parts = names_of(method) if isinstance(method, str) else method
        parts = [parts] if isinstance(parts, Method) else parts
        if not isinstance(parts, (list, tuple)):
            raise VTCError(
                f"method: got {type(method).__name__}, allowed are a name, a Method, a list of them, "
                "or a CompressionConfig"
            )
        methods = [
            create_for(model, part, options) if part == front else _one(model, part)
            for part in parts
        ]
    return settled(methods), check_policy(policy)


def _one(model: Model, method: Any) -> Method:
    """One method of a plan."""
    if isinstance(method, str):
        return create_for(model, method, {})
    if isinstance(method, Method):
        return completed(model, method)
    raise VTCError(
        f"method: got a list with {type(method).__name__}, allowed are names and Methods"
    )


def _plan(model: Model, methods: Sequence[Method], positions: str, processor: Any) -> Patch:
    """Everything that can go wrong, before anything is changed."""
    adapter = adapter_for(model)
    places, alone = {method.where for method in methods}, NoCompression()
    # behind smaller pictures the stage at the boundary has the prompt to see to
    more = [alone] if "pixels" in places and "boundary" not in places else []
    parts = stages_for(adapter, [*methods, *more])
    named = tuple(m for _, m in parts if m is not alone)
    patch = Patch(named, tuple(s for s, _ in parts), adapter, positions)
    for stage, method in parts:
        stage.check(model, patch, method)
    if positions not in adapter.positions:
        patch.positions = adapter.positions[0]
        patch.notes.insert(
            0, f"{type(model).__name__} counts positions itself: they are {patch.positions}"
        )
    patch.equip(model)
    if patch.reads_prompt:
        patch.tokenizer = load_tokenizer(processor, model)
    return patch
