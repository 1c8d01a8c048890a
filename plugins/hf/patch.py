"""Put a method on a live model and take it off again.

What a patched model carries, all on the instance, nothing on a class: the attribute `_vtc` (a `Patch`),
hooks (see `hooks` of `entry.py`, `crossed.py` and `expanded.py`), where prompts are shortened a
`generate`, and a shadow config or a hook on each probed vision attention module. `remove` takes away
exactly these.
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from vtc.config import CompressionConfig
from vtc.errors import VTCError
from vtc.methods.base import Method
from vtc.methods.which import quoted, without_signals
from vtc.plugins.hf import crossed, entry, expanded, probe
from vtc.plugins.hf.adapters import Adapter, adapter_for
from vtc.plugins.hf.adapters.base import PIXELS, layer_index
from vtc.plugins.hf.compaction import Compaction
from vtc.plugins.hf.defaults import completed, create_for
from vtc.plugins.hf.hooks import hang, take_off
from vtc.plugins.hf.positions import check_policy
from vtc.plugins.hf.text_encoder import load_text_encoder, load_tokenizer
from vtc.report import ImageReport, Report
from vtc.tokens import SignalRequest

#: how a family's models are wrapped, by `Adapter.mechanism`
_MECHANISMS = {"boundary": entry, "crossed": crossed, "expanded": expanded}


#: signals that come from hidden states of the tower, and from the question, not from attention
HIDDEN = frozenset({"last_hidden", "patch_embedding"})
TEXT = frozenset({"text_embedding", "text_similarity"})


@dataclass
class Patch:
    """The settings and state of one patched model.

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
        own_generate: a `generate` that the instance had before, else None.
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
    own_generate: Any = None
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

    def add_report(self, images: list[ImageReport], rows: list[int], seconds: float) -> None:
        """Report one prefill, `rows` being the row of the batch that each image belongs to."""
        self.reports.append(
            Report(
                images=[
                    replace(image, sample=row) for image, row in zip(images, rows, strict=True)
                ],
                method=self.method.name,
                settings=self.method.settings(),
                positions=self.positions,
                seconds=seconds,
                notes=list(self.notes),
            )
        )
        del self.reports[:-1000]  # a long-running server must not grow for ever


class Handle:
    """A patch on a model: `remove()` it, or use it as a context manager.

    Entering a block puts the patch on again where it is not, or no longer, on the model. Leaving it puts
    back whatever patch the model had before.
    """

    def __init__(self, model: nn.Module, patch: Patch, before: Patch | None = None) -> None:
        self.model, self._patch, self._before = model, patch, before

    @property
    def reports(self) -> list[Report]:
        """One `Report` for every prefill with images since the patch was applied."""
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
    def active(self) -> bool:
        """Whether this patch is the one on the model."""
        return getattr(self.model, "_vtc", None) is self._patch

    def remove(self) -> None:
        """Take this patch off; nothing happens when it is not, or no longer, on the model."""
        if self.active:
            _detach(self.model)

    def __enter__(self) -> Handle:
        if not self.active:  # entered once more, or taken off meanwhile
            self._before = _put_on(self.model, self._patch)
        return self

    def __exit__(self, *exception: object) -> None:
        if getattr(self.model, "_vtc", None) is self._before:
            return
        remove(self.model)
        if self._before is not None:
            _attach(self.model, self._before)


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
    model = _inner_most(model)
    resolved, policy = _resolve(model, method, positions, options)
    patch = _plan(model, resolved, policy, processor)
    if patch.positions != policy and (positions is not None or policy != "original"):
        raise VTCError(f"positions: got {policy!r}, but {patch.notes[0]}")
    return Handle(model, patch, _put_on(model, patch))


def remove(model: nn.Module) -> None:
    """Take any patch off `model`; nothing happens when there is none."""
    model = _inner_most(model)
    if getattr(model, "_vtc", None) is not None:
        _detach(model)


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
    takes = inspect.signature(type(model).forward).parameters
    if adapter.mechanism == "boundary" and "mm_encoder_outputs" not in takes:
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


def _put_on(model: nn.Module, patch: Patch) -> Patch | None:
    """Attach `patch` in place of the patch that is there, which is returned."""
    before = getattr(model, "_vtc", None)
    if before is not None:
        _detach(model)
    _attach(model, patch)
    return before


def _attach(model: nn.Module, patch: Patch) -> None:
    for module, layer in patch.probed:
        probe.attach(module, layer)
    model._vtc = patch
    mechanism = _MECHANISMS[patch.adapter.mechanism]
    hang(mechanism.hooks(model))
    if mechanism is entry and hasattr(model, "generate"):
        patch.own_generate = model.__dict__.get("generate")
        # Not a bound method: unpickling would look it up on the class
        model.generate = functools.partial(entry.generate, model)


def _detach(model: nn.Module) -> None:
    patch = model._vtc
    for module, _ in patch.probed:
        probe.detach(module)
    mechanism = _MECHANISMS[patch.adapter.mechanism]
    take_off(mechanism.hooks(model))
    if mechanism is crossed:
        crossed.all_patches(patch.adapter.tower(model.base_model))
    if mechanism is entry:
        model.__dict__.pop("generate", None)
        if patch.own_generate is not None:
            model.generate, patch.own_generate = patch.own_generate, None
    del model._vtc
