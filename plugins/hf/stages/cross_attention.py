"""Compression of models that read images by cross-attention: no placeholders, nothing to shorten.

The vision model is wrapped by two hooks. One lets it run as ever; the other keeps, of every tile, the
same number of tokens, and says so in `num_patches`, from which the model makes its cross-attention mask
in this and in every later forward. The number belongs to a conversation, so it is kept on its cache, and
forwards of one model wait for each other.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vtc.errors import VTCError
from vtc.methods.base import Method
from vtc.methods.compares_frames import ComparesFrames
from vtc.methods.which import quoted, without_signals
from vtc.plugins.hf import arguments, cache
from vtc.plugins.hf.adapters.base import Adapter, Call, adapter_for
from vtc.plugins.hf.hooks import Hook
from vtc.plugins.hf.probe import Record
from vtc.plugins.hf.signals import Signals
from vtc.plugins.hf.stages.base import register_stage
from vtc.plugins.hf.stages.encoder import EncoderStage
from vtc.plugins.hf.stages.running import forget_call, heard, listen, note_call, running
from vtc.plugins.hf.typing import Model
from vtc.plugins.model.fingerprint import content_seeds
from vtc.plugins.model.signals import GIVEN, POOLED, WORDS
from vtc.plugins.model.units import Unit, places, uncut
from vtc.report import ImageReport
from vtc.tokens import CompressedTokens, VisualTokens

if TYPE_CHECKING:
    from vtc.plugins.hf.patch import Patch

_LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
# The lock of the forward under way in this context
_TAKEN: ContextVar[Any] = ContextVar("vtc_taken", default=None)


def all_patches(tower: Model) -> int:
    """All patches of a tile, CLS included."""
    return (tower.image_size // tower.patch_size) ** 2 + 1


def refuse_static_cache(model: Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of the model."""
    named = arguments.by_name(model, args, kwargs)
    layers = getattr(cache.given(named), "layers", ())
    if named.get("pixel_values") is not None and any(
        type(layer).__name__.startswith("Static") for layer in layers
    ):
        raise VTCError(
            f"{cache.name(model)}: got a static cache, whose cross-attention layers are made for all "
            "patches; allowed while this model is compressed are dynamic caches"
        )


def begin(model: Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Forward pre-hook of the model: its turn, and the number of patches that its cache holds."""
    kwargs = cache.renamed(model, arguments.by_name(model, args, kwargs))
    tower = adapter_for(model).tower(model.base_model)
    lock = _LOCKS.setdefault(model, threading.RLock())
    lock.acquire()
    _TAKEN.set(lock)
    tower.num_patches = getattr(cache.given(kwargs), "_vtc_patches", None) or all_patches(tower)
    return (), kwargs


def end(model: Model, args: Any, kwargs: dict[str, Any], output: Any) -> None:
    """Forward hook of the model, which runs when it failed as well."""
    lock = _TAKEN.get()
    if lock is None:
        return
    _TAKEN.set(None)
    tower = adapter_for(model).tower(model.base_model)
    held = None if output is None else cache.found(output, kwargs)
    if held is not None and tower.num_patches != all_patches(tower):
        held._vtc_patches = tower.num_patches
    tower.num_patches = all_patches(tower)
    lock.release()


def before(tower: Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of the tower: all its patches, and ears for the probes."""
    tower.num_patches = all_patches(tower)
    call = running()
    if call is not None:
        listen(call.patch)


def after(tower: Model, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Forward hook of the tower: keep as many tokens of every tile."""
    call = running()
    if call is None:
        return None
    record, start = heard(), time.perf_counter()
    patch, hidden = call.patch, output.last_hidden_state  # [B, images, tiles, P, C]
    named = arguments.by_name(tower, args, kwargs)
    real = named["aspect_ratio_mask"].flatten(0, 1).bool()  # [B * images, tiles]
    images = hidden.flatten(0, 1)
    shown = [i for i in range(len(images)) if bool(real[i].any())]
    rows = [image // hidden.shape[1] for image in shown]
    count, out, reports = tower.num_patches, {}, []
    for index, image in enumerate(shown):
        question = call.question(rows[index]) if patch.reads_text else None
        tokens = _tokens(patch, tower, images[image], real[image], record, image, named, question)
        began = time.perf_counter()
        method = dataclasses.replace(patch.method.for_image(index, len(shown)), video="frame")
        out[image] = method.compress(tokens)
        seconds = time.perf_counter() - began
        asked = method.asked(tokens)
        reports.append(ImageReport.from_tokens(tokens, out[image], seconds, asked=asked))
        tiles = int(real[image].sum())
        mine = len(out[image]) // tiles
        uneven = [n for n, _ in reports[-1].per_tile if n + 1 != mine]
        if uneven or (index and mine != count):
            raise VTCError(
                f"method: {method.name!r} keeps different numbers of patches of the tiles, but "
                "cross-attention needs one; give it a retention, or take "
                f"{quoted(without_signals())}"
            )
        count = mine
    patch.add_report(call.scope.call, reports, rows, time.perf_counter() - start)
    if count != tower.num_patches:
        kept = images[:, :, :count].clone()
        for image, result in out.items():
            kept[image, real[image]] = _rows(images[image][real[image]], result, count)
        output.last_hidden_state = kept.view(*hidden.shape[:3], count, hidden.shape[4])
        tower.num_patches = count
    return output


def _rows(tiles: Tensor, out: CompressedTokens, count: int) -> Tensor:
    """`[T, count, C]`: of every tile its CLS token and what is left."""
    own = tiles.flatten(0, 1)[out.anchor.to(tiles.device)]
    return torch.where(out.is_patch[:, None], out.features, own).unflatten(0, (-1, count))


def _tokens(
    patch: Patch,
    tower: Model,
    image: Tensor,
    real: Tensor,
    record: Record,
    index: int,
    named: dict[str, Any],
    question: str | None,
) -> VisualTokens:
    """One image: its tiles as the frames of a clip, each led by its CLS token."""
    tiles = image[real]
    side = tower.image_size // tower.patch_size
    unit = Unit(uncut((side, side), tiles=len(tiles), lead=True))
    output = BaseModelOutputWithPooling(
        pooler_output=tiles, hidden_states=(tiles[..., : tower.hidden_size],)
    )
    call = Call(
        tower.config, "image", {"image": index, "real": real}, None, real, tower, output, record
    )
    signals = Signals(patch, call).of(next(places([unit])), question, unit, tiles.flatten(0, 1))
    seed = 0
    if patch.method.draws:
        pixels = named["pixel_values"].flatten(0, 1)[index][real]
        seed = content_seeds([pixels])[0]
    return VisualTokens(tiles[:, 1:], unit.packing, signals=signals, content_seed=seed)


@register_stage
class CrossAttention(EncoderStage):
    """On the model and its vision tower are hooks, no more."""

    name: ClassVar[str] = "cross_attention"
    functions = (refuse_static_cache, note_call, begin, forget_call, end, before, after)
    lacks = GIVEN | POOLED
    because = ", a model that reads images by cross-attention,"

    def hooks(self, model: Model, adapter: Adapter) -> list[Hook]:
        tower = adapter.tower(model.base_model)
        return [
            Hook(model, "forward_pre", refuse_static_cache),
            Hook(model, "forward_pre", note_call),
            Hook(model, "forward_pre", begin),
            Hook(model, "forward", forget_call, always=True),
            Hook(model, "forward", end, always=True),
            Hook(tower, "forward_pre", before),
            Hook(tower, "forward", after),
        ]

    def check(self, model: Model, patch: Patch, method: Method) -> None:
        super().check(model, patch, method)
        if isinstance(method, ComparesFrames):
            raise VTCError(
                f"method: {method.name!r} compares the frames of a clip with each other, but "
                f"{type(model).__name__} reads images by cross-attention, as many tokens of every tile"
            )
        if method.by_question:
            raise VTCError(
                f"retention: got shares by question, but {type(model).__name__} reads images by "
                "cross-attention, as many tokens of every one; give one share"
            )
        requests = patch.requests.values()
        if any(request.kind in WORDS for request in requests):
            raise VTCError(
                f"method: {method.name!r} compares tokens with the question as the language model "
                f"reads both, but {type(model).__name__} reads images by cross-attention"
            )
        if any(request.norm for request in requests):
            raise VTCError(
                f"method: {method.name!r} reads hidden states behind the tower's final norm, which "
                f"{type(model).__name__}{self.because} does not give"
            )
