"""Put a method on a live model and take it off again."""

from __future__ import annotations

from typing import Any

from torch import nn

from vtc.config import CompressionConfig
from vtc.errors import VTCError
from vtc.methods.base import Method
from vtc.methods.which import quoted, without_signals
from vtc.plugins.hf import arguments
from vtc.plugins.hf.adapters import adapter_for
from vtc.plugins.hf.adapters.base import PIXELS
from vtc.plugins.hf.attach import sync
from vtc.plugins.hf.defaults import completed, create_for
from vtc.plugins.hf.handle import Handle
from vtc.plugins.hf.patch import HIDDEN, TEXT, Patch
from vtc.plugins.hf.scopes import LOCK, State, state_of
from vtc.plugins.hf.selfcheck import check_once
from vtc.plugins.hf.text_encoder import load_tokenizer
from vtc.plugins.model.layers import layer_index
from vtc.plugins.model.positions import check_policy


def apply(
    model: nn.Module,
    method: str | Method | CompressionConfig,
    *,
    processor: Any = None,
    positions: str | None = None,
    **options: Any,
) -> Handle:
    """Compress the visual tokens of `model` from now on; a patch already there is replaced.

    Args:
        model: a transformers vision-language model, or a PEFT model around one.
        method: name, `Method`, or `CompressionConfig`. Options that are not given are those that the
            model brings (`defaults.py`); a `Method` has those that are not None given.
        processor: processor or tokenizer, read by text-guided methods; by default the one beside the
            model's weights.
        positions: `"original"` (default), `"contiguous"` or `"regrid"`, see `positions.py`. A model
            that counts positions itself has only one policy, which is its default.
        options: hyper-parameters, when `method` is a name.

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
    model: nn.Module,
    method: str | Method | CompressionConfig,
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


def remove(model: nn.Module) -> None:
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


def _inner_most(model: nn.Module) -> nn.Module:
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
    model: nn.Module,
    method: str | Method | CompressionConfig,
    positions: str | None,
    options: dict[str, Any],
) -> tuple[Method, str]:
    if isinstance(method, str):
        return create_for(model, method, options), check_policy(positions or "original")
    if options:
        raise VTCError(
            f"{next(iter(options))}: options go with a method's name; got {type(method).__name__}"
        )
    if isinstance(method, CompressionConfig):
        created = create_for(model, method.method, method.fields())
        return created, check_policy(positions or method.positions)
    if isinstance(method, Method):
        return completed(model, method), check_policy(positions or "original")
    raise VTCError(
        f"method: got {type(method).__name__}, allowed are a name, a Method or a CompressionConfig"
    )


def _plan(model: nn.Module, method: Method, positions: str, processor: Any) -> Patch:
    """Everything that can go wrong, before anything is changed."""
    adapter = adapter_for(model)
    base = model.base_model
    if adapter.mechanism == "boundary" and not arguments.takes(model, "mm_encoder_outputs"):
        import transformers

        raise VTCError(
            f"transformers: {transformers.__version__} is installed, needed is >= 5.18 "
            "(its models take no mm_encoder_outputs before)"
        )
    adapter.check(base)
    has_cls = adapter.has_cls(base)
    requests = method.requests(has_cls)
    modalities = [m for m in PIXELS if adapter.token_id(model.config, m) is not None]
    layers = {modality: adapter.layers(base, modality) for modality in modalities}
    depth = len(layers["image"])
    read = {r.kind for r in requests.values()} - TEXT
    if read and depth == 0:
        raise VTCError(
            f"method: {method.name!r} reads {', '.join(sorted(read))}, but no attention layers are "
            f"found in the vision tower of {type(model).__name__}; {quoted(without_signals())} "
            "work without"
        )
    needed = {
        layer_index(request.layer, depth)
        for request in requests.values()
        if request.kind not in HIDDEN | TEXT
    }
    deepest = depth - 1 if read & HIDDEN else max(needed, default=-1)
    towers = {id(adapter.tower(base, modality)): modality for modality in layers if needed}
    probed = [
        (adapter.attention(base, layer, modality), layer)
        for layer in sorted(needed)
        for modality in towers.values()
    ]
    adapter.projector(base)  # raises where a hook will find none

    if adapter.mechanism == "crossed" and any(
        request.kind == "text_similarity" for request in requests.values()
    ):
        raise VTCError(
            f"method: {method.name!r} compares tokens with the question as the language model reads "
            f"both, but {type(model).__name__} reads images by cross-attention"
        )
    notes = list(adapter.notes(base, method))
    if positions not in adapter.positions:
        positions = adapter.positions[0]
        notes.insert(0, f"{type(model).__name__} counts positions itself: they are {positions}")
    if not has_cls and any(r.kind == "attention_received" for r in requests.values()):
        notes.append("the vision tower has no CLS token: attention received is used in its place")
    patch = Patch(
        method,
        adapter,
        positions,
        requests,
        layers,
        deepest,
        notes=notes,
        probed=probed,
        has_cls=has_cls,
    )
    patch.equip(model)
    kinds = {request.kind for request in requests.values()}
    if "text_similarity" in kinds or (
        patch.reads_text and getattr(method, "question", None) is None
    ):
        patch.tokenizer = load_tokenizer(processor, model)
    return patch
