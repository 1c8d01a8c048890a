"""Where a call of `generate` spends what is read from a clock or a counter.

Hooks mark begin and end of every stage; what is read at a mark is up to the caller: seconds, CUDA
events, floating-point operations. Nothing is read between the marks, so a stage runs as ever.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from torch import nn

from vtc.errors import VTCError
from vtc.plugins.hf.adapters import adapter_for
from vtc.plugins.hf.watch import watching

#: "encoder": vision tower and projector. "encoder_layers": from its first layer to the end of its last.
#: "shorten": all that vtc does before the language model, the encoder included. "language": language
#: model and head.
STAGES = ("encoder", "encoder_layers", "shorten", "language")


class LayerMarks(NamedTuple):
    """What was read at a layer of the language model.

    Attributes:
        arrived: before anything is done to what enters it; from here to `begin` tokens are chosen and
            dropped where they are.
        begin, end: of the layer itself.
    """

    arrived: Any
    begin: Any
    end: Any


class Stages:
    """The marks of one call.

    Args:
        read: what is noted at a mark.

    Attributes:
        marks: stage -> `(begin, end)` of every time it ran, in order. The language model runs once
            for the prompt, then once for every further token.
        language_layers: marks of the language model's layers, a list of them a run.
        lengths: tokens of the prompt that entered each layer of the language model.
        layers: layers that ran in the encoder.
        encoder: the last call of the encoder, to be made again.
    """

    def __init__(self, read: Callable[[], Any]) -> None:
        self.read = read
        self.marks: dict[str, list[tuple[Any, Any]]] = {stage: [] for stage in STAGES}
        self.language_layers: list[list[LayerMarks]] = []
        self.lengths: list[int] = []
        self.layers = 0
        self.encoder: Callable[[], Any] | None = None
        self._open: dict[str, Any] = {}

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[Stages]:
        """Mark what `model` does inside the block; compression may be on it or not.

        Raises:
            VTCError: the family gives no tower or language model of its own to mark.
        """
        base, language, towers, decoder = parts(model)
        with ExitStack() as stack:
            features = base.__dict__.get("get_image_features")
            base.get_image_features = self._encoder(base.get_image_features)
            stack.callback(_restore, base, features)
            stack.enter_context(watching(self._shorten))
            for hang, layers in ((self._tower_layer, towers), (self._language_layer, decoder)):
                for layer in layers:
                    for handle in hang(layer):
                        stack.callback(handle.remove)
            for handle in (
                language.register_forward_pre_hook(lambda *_: self._begin("language")),
                model.register_forward_hook(lambda *_: self._end("language")),
            ):
                stack.callback(handle.remove)
            yield self

    def _begin(self, stage: str) -> None:
        self._open[stage] = self.read()

    def _end(self, stage: str) -> None:
        self.marks[stage].append((self._open.pop(stage), self.read()))

    def _encoder(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def marked(*args: Any, **kwargs: Any) -> Any:
            self.layers = 0
            self.encoder = functools.partial(function, *args, **kwargs)
            self._begin("encoder")
            output = function(*args, **kwargs)
            self._end("encoder")
            return output

        return marked

    @contextmanager
    def _shorten(self) -> Iterator[None]:
        self._begin("shorten")
        yield
        if self.marks["encoder"]:  # a step behind a cached prompt has nothing to shorten
            self._end("shorten")

    def _tower_layer(self, layer: nn.Module) -> Iterator[Any]:
        """The span of all layers grows with each of them, and is one entry a run."""
        spans = self.marks["encoder_layers"]

        def before(*_: Any) -> None:
            if len(spans) == len(self.marks["encoder"]):
                begin = self.read()
                spans.append((begin, begin))

        def after(*_: Any) -> None:
            self.layers += 1
            spans[-1] = (spans[-1][0], self.read())

        yield layer.register_forward_pre_hook(before)
        yield layer.register_forward_hook(after)

    def _language_layer(self, layer: nn.Module) -> Iterator[Any]:
        """Marks around what others have hung in front of the layer, and around the layer."""

        def arrive(*_: Any) -> None:
            if len(self.language_layers) == len(self.marks["language"]):
                self.language_layers.append([])
            self._open["arrived"] = self.read()

        def before(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            if len(self.language_layers) == 1:
                self.lengths.append(hidden.shape[1])
            self._begin("layer")

        def after(*_: Any) -> None:
            marks = LayerMarks(self._open.pop("arrived"), self._open.pop("layer"), self.read())
            self.language_layers[-1].append(marks)

        yield layer.register_forward_pre_hook(arrive, prepend=True)
        yield layer.register_forward_pre_hook(before, with_kwargs=True)
        yield layer.register_forward_hook(after)


def parts(model: nn.Module) -> tuple[Any, Any, nn.ModuleList, nn.ModuleList]:
    """The inner model, its language model, and the layers of tower and language model.

    Raises:
        VTCError: images do not come in as tokens of the prompt, or a part is not found.
    """
    base: Any = model.base_model
    adapter = adapter_for(model)
    language = getattr(base, "language_model", None)
    decoder = getattr(language, "layers", None)
    if "boundary" not in adapter.stages or not isinstance(decoder, nn.ModuleList):
        raise VTCError(
            f"model: {type(model).__name__} cannot be measured stage by stage, allowed are models "
            "whose images are tokens in front of a language model with a list of layers"
        )
    return base, language, adapter.layers(base, "image"), decoder


def _restore(base: nn.Module, features: Any) -> None:
    """Give the inner model back the `get_image_features` that it had."""
    if features is None:
        del base.get_image_features
    else:
        base.get_image_features = features
