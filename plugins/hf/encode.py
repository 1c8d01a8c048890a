"""From pixels to compressed visual tokens: the model's own encoder, the signals, the method."""

from __future__ import annotations

import inspect
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vtc.errors import VTCError
from vtc.plugins.hf.adapters.base import PIXELS, Call, Place, Unit, layers_read, places
from vtc.plugins.hf.probe import recording
from vtc.plugins.hf.signals import Signals
from vtc.report import ImageReport
from vtc.tokens import CompressedTokens, VisualTokens

if TYPE_CHECKING:
    from vtc.plugins.hf.patch import Patch


@dataclass
class Encoded:
    """The images or clips of one call, all of one modality.

    Attributes:
        modality: `"image"` or `"video"`.
        output: what the model's encoder function returned, its `pooler_output` replaced by the list of
            compressed features, one `[M, D]` an image.
        lengths: uncompressed visual tokens of each image.
        anchors: int64 `[M]` an image, see `CompressedTokens.anchor`.
        reports: one an image.
        identity: True when no image lost a token.
        seconds: host time from the end of the encoder to the compressed tokens, signals included.
    """

    modality: str
    output: Any
    lengths: list[int]
    anchors: list[Tensor]
    reports: list[ImageReport]
    identity: bool
    seconds: float


def encode(
    patch: Patch,
    base: nn.Module,
    kwargs: dict[str, Any],
    ids: Tensor | None,
    placeholders: dict[str, Tensor],
    questions: Callable[[str, list[int]], list[str]],
) -> list[Encoded]:
    """Run the encoders on the pixels in `kwargs` and compress every image and clip.

    Args:
        ids: token ids of the prompts `[B, L]`, None when the caller gave embeddings.
        placeholders: modality -> bool `[B, L]`, the placeholders to fill.
        questions: given a modality and the number of tokens of each of its images, the text that each
            is asked about; called only for methods that read text.
    """
    with _awake(base):  # behind the encoders as well, for the newline
        calls = []
        for modality, placeholder in placeholders.items():
            if kwargs.get(PIXELS[modality]) is None:
                continue
            call = _run_encoder(patch, base, kwargs, modality, ids, placeholder)
            began = time.perf_counter()
            calls.append((call, patch.adapter.units(call), time.perf_counter() - began))
        count = sum(len(units) for _, units, _ in calls)
        done: list[Encoded] = []
        for call, units, seconds in calls:
            first = sum(len(encoded.lengths) for encoded in done)
            done.append(compress_call(patch, call, units, questions, first, count))
            done[-1].seconds += seconds
    return done


def _run_encoder(
    patch: Patch,
    base: nn.Module,
    kwargs: dict[str, Any],
    modality: str,
    ids: Tensor | None,
    placeholder: Tensor,
) -> Call:
    function = getattr(base, f"get_{modality}_features")
    accepted = inspect.signature(function).parameters
    arguments = {k: v for k, v in kwargs.items() if k in accepted and v is not None}
    if patch.reads_hidden:
        arguments["output_hidden_states"] = True
    for name, parameter in accepted.items():
        if (
            parameter.default is parameter.empty
            and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ):
            if name not in arguments:
                raise VTCError(
                    f"{name}: got None, {type(base).__name__} needs it beside the pixels"
                )
    with recording() as record, _live_layers(patch, base, modality, arguments):
        output = function(**arguments, return_dict=True)
    # The model's forward wants what its encoder returned: a list of images, or one tensor
    patch.tensors[modality] = isinstance(output.pooler_output, Tensor)
    return Call(base, modality, kwargs, ids, placeholder, output, record)


def compress_call(
    patch: Patch,
    call: Call,
    units: list[Unit],
    questions: Callable[[str, list[int]], list[str]],
    first: int,
    count: int,
) -> Encoded:
    """Compress what one encoder call made.

    Args:
        units: the images or clips of the call.
        questions: see `encode`.
        first: how many images and clips of the prompt other calls made before.
        count: of all calls.
    """
    start = time.perf_counter()
    packed = torch.cat([p.flatten(0, -2) for p in call.output.pooler_output])
    layouts = [unit.layout for unit in units]
    lengths = [len(layout) for layout in layouts]
    if sum(lengths) != len(packed):
        raise VTCError(
            f"model: packed {len(units)} {call.modality}(s) into {len(packed)} tokens, their layout "
            f"says {sum(lengths)}; is this a modified {type(call.base).__name__}?"
        )
    parts = list(packed.split(lengths))
    texts = questions(call.modality, lengths) if patch.text_encoder is not None else None
    signals = Signals(patch, call)
    fit = patch.adapter.fit(call.base, call.modality)

    anchors, reports, identity = [], [], True
    for index, (place, fine) in enumerate(zip(places(units), signals.places(units), strict=True)):
        method = patch.method.for_image(first + index, count)
        captured: dict[str, Tensor] = {}
        tokens = _visual_tokens(
            patch, call, units, index, place, parts[index], captured, signals.cell
        )
        began = time.perf_counter()
        if method.is_identity(tokens):
            out = method.compress(tokens)
        else:
            identity = False
            captured.update(signals.of(fine, texts[index] if texts is not None else None))
            out = method.compress(tokens)
            parts[index] = _to_language(patch, call, units[index], out, parts[index])
        seconds = time.perf_counter() - began
        reports.append(ImageReport.from_tokens(tokens, out, seconds, fit=fit))
        anchors.append(out.anchor)
    call.output.pooler_output = parts
    _gather_deepstack(call.output, lengths, anchors)
    seconds = time.perf_counter() - start
    return Encoded(call.modality, call.output, lengths, anchors, reports, identity, seconds)


def _visual_tokens(
    patch: Patch,
    call: Call,
    units: list[Unit],
    index: int,
    place: Place,
    packed: Tensor,
    signals: dict[str, Tensor],
    cell: tuple[int, int],
) -> VisualTokens:
    unit, record = units[index], call.record
    vision = patch.method.stage == "vision"
    if unit.fused:
        features = unit.unpack(packed)
    else:
        rows = record.projector_input if vision else record.projector_output
        if rows is None:
            raise VTCError("model: its projector was not called; was it replaced after apply()?")
        features = place.patches_of(rows[:, int(unit.lead) :].flatten(0, 1))
    seed = 0
    if patch.method.draws:
        pixels = patch.adapter.pixels(call, units, index).detach().float().cpu().contiguous()
        seed = zlib.crc32(pixels.numpy().tobytes())
    tokens = VisualTokens(
        features=features,
        patch_grid=unit.patch_grid,
        tile_grid=unit.tile_grid,
        image_size=unit.image_size,
        newline=patch.adapter.newline(call.base) if unit.newline else None,
        signals=signals,
        unpad=unit.unpad,
        content_seed=seed,
        order=unit.order,
        shrink=unit.shrink,
        lead=unit.lead,
        tail=unit.tail,
        cell=cell,
    )
    tokens.__dict__["layout"] = unit.layout  # the cached property, worked out already
    return tokens


def _to_language(
    patch: Patch, call: Call, unit: Unit, out: CompressedTokens, packed: Tensor
) -> Tensor:
    """Compressed features in the language model's width; separators as the model packed them."""
    features = out.features
    if unit.fused and out.projected:
        raise VTCError(
            f"projector: a trained one cannot take the place of {type(call.base).__name__}'s, behind "
            "which this image is scaled down; allowed here is None"
        )
    if patch.method.stage == "vision" and not unit.fused and not out.projected:
        features = patch.adapter.projector(call.base)(features[None])[0]
    if unit.newline or unit.lead or unit.tail:
        own = packed[out.anchor.to(packed.device)]
        features = torch.where(out.is_patch[:, None], features, own.to(features.dtype))
    return features.to(packed.dtype)


def _gather_deepstack(output: Any, lengths: list[int], anchors: list[Tensor]) -> None:
    """Features for deeper decoder layers lose the same tokens; merged ones keep their anchor's."""
    levels = getattr(output, "deepstack_features", None)
    if levels is None:
        return
    output.deepstack_features = [
        [
            part[anchor.to(part.device)]
            for part, anchor in zip(torch.cat(list(level)).split(lengths), anchors, strict=True)
        ]
        for level in levels
    ]


@contextmanager
def _awake(base: nn.Module) -> Iterator[None]:
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
def _live_layers(
    patch: Patch, base: nn.Module, modality: str, arguments: dict[str, Any]
) -> Iterator[None]:
    """Leave out the encoder layers that nobody reads.

    LLaVA takes its features before the last layer, so that layer runs in vain unless a signal comes
    from it. The list of layers is shortened, the layers themselves are not touched.
    """
    feature_layer = arguments.get("vision_feature_layer")
    if feature_layer is None:
        feature_layer = getattr(base.config, "vision_feature_layer", None)
    if feature_layer is None:
        yield
        return
    wanted = layers_read(feature_layer, patch.depth)
    live = max(*wanted, patch.deepest + 1, 1)
    # In the tower's first run transformers hangs its recorder on the layers it finds, for good: show
    # it all of them
    modules = patch.adapter.tower(base, modality).modules()
    recorded = any(getattr(m, "_output_capturing_hooks_installed", False) for m in modules)
    if live >= patch.depth or not recorded:
        yield
        return
    # From the front, since counting from the back would now start at another layer
    arguments["vision_feature_layer"] = wanted[0] if isinstance(feature_layer, int) else wanted
    owner, name = patch.adapter.layer_list(base, modality)
    layers = patch.layers[modality]  # not what is found: another thread may have shortened it
    setattr(owner, name, layers[:live])
    try:
        yield
    finally:
        setattr(owner, name, layers)
