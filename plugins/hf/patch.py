"""Put a method on a live model and take it off again.

Here is what a user holds (`Handle`) and what is settled before a model is touched (`Patch`); see
`attach.py` for what a patched model carries, `scopes.py` for whose patch a call comes under.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any

from torch import nn

from vtc.config import CompressionConfig
from vtc.errors import VTCError
from vtc.methods.base import Method
from vtc.plugins.hf import arguments
from vtc.plugins.hf.adapters import Adapter, adapter_for
from vtc.plugins.hf.adapters.base import PIXELS, layer_index
from vtc.plugins.hf.attach import sync
from vtc.plugins.hf.compaction import Compaction
from vtc.plugins.hf.positions import check_policy
from vtc.plugins.hf.scopes import (
    LOCK,
    Block,
    Call,
    State,
    caller,
    note_entered,
    note_left,
    state_of,
)
from vtc.plugins.hf.selfcheck import check_once
from vtc.plugins.hf.text_encoder import load_text_encoder, load_tokenizer
from vtc.registry import create_method
from vtc.report import ImageReport, Report
from vtc.tokens import SignalRequest

#: signals that come from hidden states of the tower, and from the question, not from attention
HIDDEN = frozenset({"last_hidden", "patch_embedding"})
TEXT = frozenset({"text_embedding", "text_similarity"})


@dataclass(eq=False)
class Patch:
    """What holds for the calls that come under one handle.

    Attributes:
        method: the compression method.
        adapter: what is known of the model family.
        positions: position policy.
        requests: the signals the method reads, by name.
        layers: modality -> the encoder layers of its vision tower.
        deepest: the deepest encoder layer that a signal is read from, -1 for none.
        text_encoder: for text-guided methods, else None.
        tokenizer: reads the prompt for text-guided methods, else None.
        notes: what a reader of the reports should know, e.g. a stand-in signal.
        reports: one `Report` for every prefill with images, the last 1000.
        compaction: how the last prompt was shortened, None when it was not.
        probed: the attention modules that queries and keys are read from, each with its layer.
        has_cls: whether the vision tower has a CLS token.
        tensors: modality -> whether the model wants its features as one tensor, not a list.
    """

    method: Method
    adapter: Adapter
    positions: str
    requests: dict[str, SignalRequest]
    layers: dict[str, nn.ModuleList]
    deepest: int
    text_encoder: Any = None
    tokenizer: Any = None
    notes: list[str] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    compaction: Compaction | None = None
    probed: list[tuple[nn.Module, int]] = field(default_factory=list)
    has_cls: bool = False
    tensors: dict[str, bool] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """Encoder layers of the vision tower; two towers of a model have the same."""
        return len(self.layers["image"])

    @property
    def reads_hidden(self) -> bool:
        """Whether the method reads hidden states of the vision tower."""
        kinds = {request.kind for request in self.requests.values()}
        return bool(kinds & HIDDEN)

    @property
    def reads_text(self) -> bool:
        """Whether the method reads what is asked."""
        return any(request.kind in TEXT for request in self.requests.values())

    def add_report(
        self, call: Call | None, images: list[ImageReport], rows: list[int], seconds: float
    ) -> None:
        """Report one prefill, `rows` being the row of the batch that each image belongs to."""
        report = Report(
            images=[replace(image, sample=row) for image, row in zip(images, rows, strict=True)],
            method=self.method.name,
            settings=self.method.settings(),
            positions=self.positions,
            seconds=seconds,
            notes=list(self.notes),
        )
        self.reports.append(report)
        del self.reports[:-1000]  # a long-running server must not grow for ever
        if call is not None:
            call.reports.append(report)

    def note_compaction(self, call: Call | None, compaction: Compaction | None) -> None:
        """Remember how the prompt of a call was shortened."""
        self.compaction = compaction
        if call is not None:
            call.compaction = compaction


class Handle:
    """A patch for a model: use it as a context manager, or `remove()` what `vtc.apply` put on.

    A block's settings hold for the code that entered it, and for threads that it starts. Blocks on one
    model may overlap in any order; each takes away its own patch alone, and leaving the last one leaves
    the model as it was found.
    """

    def __init__(self, model: nn.Module, patch: Patch) -> None:
        self.model, self._patch = model, patch
        self._blocks: list[Block] = []
        self._found: Patch | None = None  # by `apply`
        self._used = False

    @property
    def reports(self) -> list[Report]:
        """One `Report` for every prefill with images under this patch, the last 1000.

        Calls of several threads stand in the order in which they were made; `call` tells them apart.
        """
        return self._patch.reports

    @property
    def compaction(self) -> Compaction | None:
        """How the last prompt with images was shortened, for what is in terms of the short one: logits,
        hidden states, attentions. `slot[b, i]` is the column of the caller's prompt that place i stands
        for, `position[b, i]` the column that gives its position, `valid[b, i]` False for padding.

        None before the first such prompt, when nothing was dropped, and for models whose prompt is not
        shortened (Mllama, mPLUG-DocOwl).
        """
        return self._patch.compaction

    @property
    def method(self) -> Method:
        """The method on the model."""
        return self._patch.method

    @property
    def text_encoder(self) -> Any:
        """The text encoder that a text-guided method reads, else None."""
        return self._patch.text_encoder

    @property
    def active(self) -> bool:
        """Whether this patch is on the model, for good or in an open block."""
        state = state_of(self.model)
        return state is not None and self._patch in state.patches

    @contextmanager
    def call(self) -> Iterator[Call]:
        """Inside, calls made here (or in threads started here) come under this patch and report to the
        `Call` that is yielded as well.

            with handle.call() as call:
                out = model.generate(**inputs)
            call.report, call.compaction
        """
        call = Call()
        block = self._enter(caller(), call)
        try:
            yield call
        finally:
            self._leave(block)

    def __del__(self) -> None:
        if not self._used:
            warnings.warn(
                "vtc.compress(...) had no effect: it was never entered. Write "
                "`with vtc.compress(...):`, or take vtc.apply(...), which stays on",
                RuntimeWarning,
                stacklevel=2,
            )

    def remove(self) -> None:
        """Take this patch off; nothing happens when it is not, or no longer, on the model."""
        state = state_of(self.model)
        if state is None:
            return
        with LOCK:
            if state.patch is self._patch:
                state.patch = None
            for block in state.blocks:
                if block.patch is self._patch:
                    block.patch = None
            sync(self.model, state)

    def __enter__(self) -> Handle:
        self._blocks.append(self._enter(caller(), None))
        return self

    def __exit__(self, *exception: object) -> None:
        frame = caller()
        mine = [block for block in self._blocks if block.frame is frame] or self._blocks
        block = mine[-1]
        self._blocks.remove(block)
        self._leave(block)
        state = state_of(self.model)
        if state is not None and state.patch is self._patch and not self._blocks:
            with LOCK:  # what `apply` found comes back
                state.patch, self._found = self._found, None
                sync(self.model, state)

    def _enter(self, frame: FrameType, call: Call | None) -> Block:
        self._used = True
        with LOCK:
            state = state_of(self.model) or State()
            block = Block(self._patch, call, frame, state)
            state.blocks.append(block)
            sync(self.model, state)
        note_entered(block)
        return block

    def _leave(self, block: Block) -> None:
        note_left(block)
        with LOCK:
            state = state_of(self.model) or State()
            state.blocks = [each for each in state.blocks if each is not block]
            block.frame = None
            if block.suspended is not None and state.patch is None:
                state.patch = block.suspended
            sync(self.model, state)

    def __repr__(self) -> str:
        settings = ", ".join(f"{k}={v!r}" for k, v in self.method.settings().items())
        count = len(self.reports)
        return (
            f"<{self.method.name}({settings}) on {type(self.model).__name__}, "
            f"{'active' if self.active else 'not active'}, {count} report{'' if count == 1 else 's'}>"
        )


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
        method: name, `Method`, or `CompressionConfig`.
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
    resolved, policy = _resolve(method, positions, options)
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
    method: str | Method | CompressionConfig, positions: str | None, options: dict[str, Any]
) -> tuple[Method, str]:
    if isinstance(method, str):
        return create_method(method, **options), check_policy(positions or "original")
    if options:
        raise VTCError(
            f"{next(iter(options))}: options go with a method's name; got {type(method).__name__}"
        )
    if isinstance(method, CompressionConfig):
        return method.create(), check_policy(positions or method.positions)
    if isinstance(method, Method):
        return method, check_policy(positions or "original")
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
            f"found in the vision tower of {type(model).__name__}; 'uniform', 'pool' and 'random' "
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
    kinds = {request.kind for request in requests.values()}
    if kinds & {"text_embedding", "patch_embedding"}:
        official = getattr(method, "text_source", "question") == "official"
        width = adapter.width(base)
        choice = getattr(method, "text_encoder", None)
        patch.text_encoder = load_text_encoder(choice, model, width, official)
    if "text_similarity" in kinds or (
        patch.reads_text and getattr(method, "question", None) is None
    ):
        patch.tokenizer = load_tokenizer(processor, model)
    return patch
