"""Where a call of `generate` spends what is read from a clock or a counter.

Hooks mark begin and end of every stage; what is read at a mark is up to the caller: seconds, CUDA
events, floating-point operations. Nothing is read between the marks, so a stage runs as ever.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from vtc.errors import VTCError
from vtc.plugins.hf.adapters import adapter_for
from vtc.plugins.hf.watch import watching

#: "encoder": vision tower and projector. "shorten": all that vtc does before the language model,
#: the encoder included. "language": language model and head. "*_layers": from the first layer to
#: the end of the last.
STAGES = ("encoder", "encoder_layers", "shorten", "language", "language_layers")


class Stages:
    """The marks of one call.

    Args:
        read: what is noted at a mark.

    Attributes:
        marks: stage -> `(begin, end)` of every time it ran, in order. The language model runs once
            for the prompt, then once for every further token.
        layers: layers that ran in the encoder.
        encoder: the last call of the encoder, to be made again.
    """

    def __init__(self, read: Callable[[], Any]) -> None:
        self.read = read
        self.marks: dict[str, list[tuple[Any, Any]]] = {stage: [] for stage in STAGES}
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
            for layers, stage in ((towers, "encoder_layers"), (decoder, "language_layers")):
                for layer in layers:
                    for handle in self._layer(layer, stage):
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

    def _layer(self, layer: nn.Module, stage: str) -> Iterator[Any]:
        """The span of all layers grows with each of them, and is one entry a run."""
        inside = {"encoder_layers": "encoder", "language_layers": "language"}[stage]

        def before(*_: Any) -> None:
            if len(self.marks[stage]) == len(self.marks[inside]):
                begin = self.read()
                self.marks[stage].append((begin, begin))

        def after(*_: Any) -> None:
            self.layers += stage == "encoder_layers"
            self.marks[stage][-1] = (self.marks[stage][-1][0], self.read())

        yield layer.register_forward_pre_hook(before)
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
