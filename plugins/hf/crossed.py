"""Compression of models that read images by cross-attention: no placeholders, nothing to shorten.

The vision model is wrapped by two hooks. One lets it run as ever; the other keeps, of every tile, the
same number of tokens, and says so in `num_patches`, from which the model makes its cross-attention mask.
"""

from __future__ import annotations

import dataclasses
import inspect
import time
import zlib
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vtc.errors import VTCError
from vtc.plugins.hf.adapters.base import Call, Unit, places
from vtc.plugins.hf.probe import Record, recording
from vtc.plugins.hf.question import asked
from vtc.plugins.hf.signals import Signals
from vtc.report import ImageReport, Report
from vtc.tokens import CompressedTokens, VisualTokens

#: the arguments of the call under way, for the question
_CALL: ContextVar[dict[str, Any]] = ContextVar("vtc_crossed_call")
_OPEN: ContextVar[Any] = ContextVar("vtc_crossed_record")


def attach(model: nn.Module) -> None:
    """Hang the hooks on a model that carries its `_vtc` already."""
    tower = model._vtc.adapter.tower(model.base_model)
    tower._vtc = model._vtc
    tower._vtc_patches = tower.num_patches
    model.register_forward_pre_hook(note_call, with_kwargs=True)
    tower.register_forward_pre_hook(before, with_kwargs=True)
    tower.register_forward_hook(after, with_kwargs=True)


def hooks(model: nn.Module) -> list[tuple[nn.Module, Any]]:
    """Every hook with its module."""
    tower = model._vtc.adapter.tower(model.base_model)
    return [(model, note_call), (tower, before), (tower, after)]


def detach(model: nn.Module) -> None:
    """Take away what is not a hook."""
    tower = model._vtc.adapter.tower(model.base_model)
    tower.num_patches = tower._vtc_patches
    del tower._vtc, tower._vtc_patches


def note_call(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of the model."""
    named = {**dict(zip(inspect.signature(model.forward).parameters, args, strict=False)), **kwargs}
    cache = named.get("past_key_values")
    layers = getattr(cache, "layers", ())
    if named.get("pixel_values") is not None and any(
        type(layer).__name__.startswith("Static") for layer in layers
    ):
        raise VTCError(
            "past_key_values: got a static cache, whose cross-attention layers are made for all "
            "patches; allowed while this model is compressed are dynamic caches"
        )
    _CALL.set(named)


def before(tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of the tower: all its patches, and ears for the probes."""
    tower.num_patches = tower._vtc_patches
    block = recording()
    _OPEN.set((block, block.__enter__()))


def after(tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Forward hook of the tower: keep as many tokens of every tile."""
    block, record = _OPEN.get()
    block.__exit__(None, None, None)
    start = time.perf_counter()
    patch, hidden = tower._vtc, output.last_hidden_state  # [B, images, tiles, P, C]
    named = {**dict(zip(inspect.signature(tower.forward).parameters, args, strict=False)), **kwargs}
    real = named["aspect_ratio_mask"].flatten(0, 1).bool()  # [B * images, tiles]
    images = hidden.flatten(0, 1)
    shown = [i for i in range(len(images)) if bool(real[i].any())]
    count, out, reports = tower._vtc_patches, {}, []
    for index, image in enumerate(shown):
        tokens, method = _tokens(patch, tower, images[image], real[image], record, image, named)
        began = time.perf_counter()
        method = dataclasses.replace(method.for_image(index, len(shown)), video="frame")
        out[image] = method.compress(tokens)
        seconds = time.perf_counter() - began
        row = image // hidden.shape[1]
        reports.append(ImageReport.from_tokens(tokens, out[image], seconds, sample=row))
        tiles = int(real[image].sum())
        mine = len(out[image]) // tiles
        uneven = [n for n, _ in reports[-1].per_tile if n + 1 != mine]
        if uneven or (index and mine != count):
            raise VTCError(
                f"method: {method.name!r} keeps different numbers of patches of the tiles, but "
                "cross-attention needs one; give it a retention, or use 'uniform' or 'pool'"
            )
        count = mine
    patch.reports.append(
        Report(
            images=reports,
            method=patch.method.name,
            settings=patch.method.settings(),
            positions=patch.positions,
            seconds=time.perf_counter() - start,
            notes=list(patch.notes),
        )
    )
    if count != tower._vtc_patches:
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
    patch: Any,
    tower: nn.Module,
    image: Tensor,
    real: Tensor,
    record: Record,
    index: int,
    named: dict[str, Any],
) -> tuple[VisualTokens, Any]:
    """One image: its tiles as the frames of a clip, each led by its CLS token."""
    tiles = image[real]
    side = tower.image_size // tower.patch_size
    unit = Unit(len(tiles), (side, side), lead=True)
    output = BaseModelOutputWithPooling(
        pooler_output=tiles, hidden_states=(tiles[..., : tower.hidden_size],)
    )
    call = Call(tower, "image", {"image": index, "real": real}, None, real, output, record)
    signals = Signals(patch, call).of(next(places([unit])), _question(patch, index, named))
    seed = 0
    if patch.method.draws:
        pixels = named["pixel_values"].flatten(0, 1)[index][real]
        seed = zlib.crc32(pixels.detach().float().cpu().contiguous().numpy().tobytes())
    tokens = VisualTokens(
        features=tiles[:, 1:],
        patch_grid=(side, side),
        signals=signals,
        unpad="none",
        content_seed=seed,
        lead=True,
    )
    return tokens, patch.method


def _question(patch: Any, index: int, named: dict[str, Any]) -> str | None:
    if patch.text_encoder is None:
        return None
    call = _CALL.get()
    row = index // named["pixel_values"].shape[1]
    ids, mask = call.get("input_ids"), call.get("attention_mask")
    if ids is None:
        return asked(patch, None)
    return asked(patch, ids[row] if mask is None else ids[row][mask[row].bool()])
