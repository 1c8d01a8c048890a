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
from vtc.kernels.attention_received import attention_received
from vtc.kernels.cls_attention import cls_attention
from vtc.plugins.hf.adapters.base import Unit, layer_index, layers_read
from vtc.plugins.hf.probe import Record, recording
from vtc.report import ImageReport
from vtc.tokens import CompressedTokens, SignalRequest, VisualTokens

if TYPE_CHECKING:
    from vtc.plugins.hf.patch import Patch


@dataclass
class Encoded:
    """The images of one call.

    Attributes:
        output: what `get_image_features` returned, its `pooler_output` replaced by the list of
            compressed features, one `[M, D]` an image.
        lengths: uncompressed visual tokens of each image.
        anchors: int64 `[M]` an image, see `CompressedTokens.anchor`.
        reports: one an image.
        identity: True when no image lost a token.
        seconds: host time from the end of the encoder to the compressed tokens, signals included.
    """

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
    questions: Callable[[list[int]], list[str]],
) -> Encoded:
    """Run the encoder on the pixels in `kwargs` and compress every image.

    Args:
        questions: given the number of tokens of each image, the text that each is asked about; called
            only for methods that read text.
    """
    with _awake(base):  # behind the encoder as well, for the newline
        return _encode(patch, base, kwargs, questions)


def _encode(
    patch: Patch,
    base: nn.Module,
    kwargs: dict[str, Any],
    questions: Callable[[list[int]], list[str]],
) -> Encoded:
    output, record = _run_encoder(patch, base, kwargs)
    start = time.perf_counter()
    packed = output.pooler_output
    packed = list(packed) if isinstance(packed, (list, tuple)) else list(packed.unbind(0))
    lengths = [len(p) for p in packed]
    units = patch.adapter.units(base, kwargs, record.projector_output.shape[0])
    texts = questions(lengths) if patch.text_encoder is not None else [None] * len(units)
    signals = _Signals(patch, record, output, patch.adapter.has_cls(base))

    anchors, reports, identity = [], [], True
    for i, unit in enumerate(units):
        captured: dict[str, Tensor] = {}
        tokens = _visual_tokens(patch, base, record, unit, kwargs, i, captured)
        if len(tokens.layout) != lengths[i]:
            raise VTCError(
                f"model: packed image {i} into {lengths[i]} tokens, the layout says "
                f"{len(tokens.layout)}; is this a modified {type(base).__name__}?"
            )
        method = patch.method.for_image(i, len(units))
        began = time.perf_counter()
        if method.is_identity(tokens):
            out = method.compress(tokens)
        else:
            identity = False
            captured.update(signals.of(unit, texts[i]))
            out = method.compress(tokens)
            packed[i] = _to_language(patch, base, tokens, out).to(packed[i].dtype)
        reports.append(ImageReport.from_tokens(tokens, out, time.perf_counter() - began))
        anchors.append(out.anchor)
    output.pooler_output = packed
    return Encoded(output, lengths, anchors, reports, identity, time.perf_counter() - start)


def _run_encoder(patch: Patch, base: nn.Module, kwargs: dict[str, Any]) -> tuple[Any, Record]:
    accepted = inspect.signature(base.get_image_features).parameters
    arguments = {k: v for k, v in kwargs.items() if k in accepted and v is not None}
    if any(
        request.kind in ("last_hidden", "patch_embedding") for request in patch.requests.values()
    ):
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
    with recording() as record, _live_layers(patch, base, arguments):
        output = base.get_image_features(**arguments, return_dict=True)
    if record.projector_input is None or record.projector_output is None:
        raise VTCError("model: its projector was not called; was it replaced after apply()?")
    return output, record


class _Signals:
    """The signals of `vtc.tokens.SIGNALS`, computed once for the whole vision batch, on demand."""

    def __init__(self, patch: Patch, record: Record, output: Any, has_cls: bool) -> None:
        self.patch, self.record, self.output = patch, record, output
        self.skip = int(has_cls)
        self._whole: dict[SignalRequest, Tensor] = {}

    def of(self, unit: Unit, text: str | None) -> dict[str, Tensor]:
        """The signals of one image, by the names that the method reads."""
        out = {}
        for name, request in self.patch.requests.items():
            if request.kind == "text_embedding":
                embedding = self.patch.text_encoder.embed(text)
                out[name] = embedding.to(self.record.projector_output.device)
                continue
            if request not in self._whole:
                self._whole[request] = self._compute(request)
            out[name] = self._whole[request][unit.tiles]
        return out

    def _compute(self, request: SignalRequest) -> Tensor:
        kind, skip = request.kind, self.skip
        if kind in ("last_hidden", "patch_embedding"):
            # not `last_hidden_state`, which SigLIP's final norm has gone over
            hidden = self.output.hidden_states[-1][:, skip:]
            return hidden if kind == "last_hidden" else self.patch.text_encoder.project(hidden)
        query, key, scale = self.record.attention[layer_index(request.layer, self.patch.depth)]
        if kind == "attention_received":
            return attention_received(query, key, scale)[:, skip:]
        if kind == "keys":
            return key.transpose(1, 2).flatten(2)
        if kind == "cls_query":
            return query[:, :, 0].flatten(1)
        logits, probabilities = cls_attention(query[:, :, 0], key, scale)
        return (logits if kind == "cls_logits" else probabilities)[:, 1:]


def _visual_tokens(
    patch: Patch,
    base: nn.Module,
    record: Record,
    unit: Unit,
    kwargs: dict[str, Any],
    index: int,
    signals: dict[str, Tensor],
) -> VisualTokens:
    adapter = patch.adapter
    vision = patch.method.stage == "vision"
    features = (record.projector_input if vision else record.projector_output)[unit.tiles]
    seed = 0
    if patch.method.draws:
        pixels = adapter.pixels(kwargs, unit, index).detach().float().cpu().contiguous()
        seed = zlib.crc32(pixels.numpy().tobytes())
    return VisualTokens(
        features=features,
        patch_grid=adapter.patch_grid(base, features.shape[1]),
        tile_grid=unit.tile_grid,
        image_size=unit.image_size,
        newline=adapter.newline(base),
        signals=signals,
        unpad=adapter.unpad,
        content_seed=seed,
    )


def _to_language(
    patch: Patch, base: nn.Module, tokens: VisualTokens, out: CompressedTokens
) -> Tensor:
    """Compressed features in the language model's width, separators filled in."""
    features = out.features
    if patch.method.stage == "vision" and not out.projected:
        features = patch.adapter.projector(base)(features[None])[0]
    if tokens.newline is not None:
        features = torch.where(out.is_patch[:, None], features, tokens.newline.to(features))
    return features


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
def _live_layers(patch: Patch, base: nn.Module, arguments: dict[str, Any]) -> Iterator[None]:
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
    modules = patch.adapter.tower(base).modules()
    recorded = any(getattr(m, "_output_capturing_hooks_installed", False) for m in modules)
    if live >= patch.depth or not recorded:
        yield
        return
    # From the front, since counting from the back would now start at another layer
    arguments["vision_feature_layer"] = wanted[0] if isinstance(feature_layer, int) else wanted
    encoder = patch.adapter.encoder(base)
    encoder.layers = patch.layers[:live]
    try:
        yield
    finally:
        encoder.layers = patch.layers  # not what was found: another thread may have shortened it
