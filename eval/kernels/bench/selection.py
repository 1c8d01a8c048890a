"""The selection of every method as a share of a 7B language model's prefill."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtc.errors import VTCError
from vtc.eval.common.timing import interleaved, ratio, spread, stopwatch
from vtc.eval.kernels.bench.sizes import LAYERS, Sizes, normal
from vtc.kernels import attention_received, cls_attention
from vtc.methods._scorer import DemandScorer
from vtc.methods.base import Method
from vtc.methods.tokenflex import TokenFlexProjector
from vtc.registry import create_method, list_methods, method_class
from vtc.tokens import OF_THE_QUESTION, CompressedTokens, VisualTokens

#: of a question
WORDS = 12
#: visual tokens -> images, and the crops of each
COUNTS: dict[int, tuple[int, tuple[int, int] | None]] = {
    576: (1, None),
    2880: (1, (2, 2)),
    14400: (5, (2, 2)),
}


@dataclass
class Encoded:
    """What a vision tower leaves behind for B prompts.

    Attributes:
        query, keys: `[T, H, N + 1, d]`, of the layer that signals come from.
        hidden: `[T, N + 1, C]`.
        projected: `[T, N, D]`.
        newline: `[D]`.
        to_text: `[C, P]`, projection into the shared space.
        question: `[P]`.
        tiles: of each image.
        crops: of each image.
    """

    query: Tensor
    keys: Tensor
    hidden: Tensor
    projected: Tensor
    newline: Tensor
    to_text: Tensor
    question: Tensor
    tiles: int
    crops: tuple[int, int] | None

    @classmethod
    def random(
        cls,
        images: int,
        crops: tuple[int, int] | None,
        sizes: Sizes,
        device: torch.device,
        dtype: torch.dtype,
    ) -> Encoded:
        """Random values, with what methods live on: half of the patches are much alike, and CLS looks
        at a few of the others much more than at the rest.
        """
        tiles = 1 if crops is None else 1 + crops[0] * crops[1]
        length = sizes.side**2
        shape = (images * tiles, length + 1, sizes.heads, sizes.head_width)
        query = normal(device, dtype, *shape).transpose(1, 2)
        shared = normal(device, dtype, 1, sizes.heads, 1, sizes.head_width)
        spot = normal(device, dtype, len(query), 1, length + 1, 1)
        keys = query.flip(2)
        keys = (
            shared
            + torch.where(spot > 0, keys, keys / 10)
            + spot.relu() ** 2 / 32 * query[:, :, :1]
        )
        make = functools.partial(normal, device, dtype)
        return cls(
            query,
            keys.transpose(1, 2).contiguous().transpose(1, 2),
            make(images * tiles, length + 1, sizes.vision),
            make(images * tiles, length, sizes.width),
            make(sizes.width),
            make(sizes.vision, sizes.space),
            make(sizes.space),
            tiles,
            crops,
        )

    def select(self, method: Method) -> list[CompressedTokens]:
        """From the tower's tensors to the tokens handed on."""
        return method.compress_all(self.images(method))

    def images(self, method: Method) -> list[VisualTokens]:
        """The images with the signals that the method reads."""
        skip = self.hidden[:, 1:]
        features = skip if method.stage == "vision" else self.projected
        requests = method.requests()
        signals = {name: self._signal(r.kind) for name, r in requests.items()}
        whole = {name for name, r in requests.items() if r.kind in OF_THE_QUESTION}
        side = math.isqrt(features.shape[1])
        pixels = 14 * side
        crops = self.crops or (1, 1)
        return [
            VisualTokens(
                features=features[first : first + self.tiles],
                patch_grid=(side, side),
                tile_grid=self.crops,
                image_size=(crops[0] * pixels, crops[1] * pixels),
                newline=None if self.crops is None else self.newline,
                signals={
                    name: value if name in whole else value[first : first + self.tiles]
                    for name, value in signals.items()
                },
                content_seed=first,
            )
            for first in range(0, len(features), self.tiles)
        ]

    def _signal(self, kind: str) -> Tensor:
        if kind in ("cls_logits", "cls_attention"):
            scale = self.query.shape[-1] ** -0.5
            logits, attention = cls_attention.cls_attention(self.query[:, :, 0], self.keys, scale)
            return (logits if kind == "cls_logits" else attention)[:, 1:]
        if kind == "cls_query":
            return self.query[:, :, 0].flatten(1)
        if kind == "attention_received":
            scale = self.query.shape[-1] ** -0.5
            return attention_received.attention_received(self.query, self.keys, scale)[:, 1:]
        if kind == "keys":
            return self.keys.transpose(1, 2).flatten(2)
        if kind == "key_mean":
            return self.keys.mean(1)
        if kind == "projector_input":
            return self.hidden[:, 1:]
        if kind == "pixels":  # flat colours, some of them alike
            return (self.hidden[:, 1:, :48] * 2).round() / 8
        if kind == "text_embedding":
            return self.question
        if kind in ("text_segments", "text_sequence"):
            return self.question[None].expand(WORDS if kind == "text_sequence" else 1, -1)
        if kind == "question_tokens":
            return self.projected[0, :WORDS]
        if kind == "patch_embedding":
            return self.hidden[:, 1:] @ self.to_text
        raise VTCError(f"signal: got {kind!r}, which these stand-ins for a tower do not make")


def methods() -> list[str]:
    """The methods that select in front of the language model."""
    names = [name for name in list_methods("*") if name != "none"]
    return [name for name in names if method_class(name).where == "boundary"]


def method_of(
    name: str, retention: float, sizes: Sizes, device: torch.device, dtype: torch.dtype
) -> Method:
    """The method; one that was trained with a part that was not."""
    if name == "learned":
        scorer = DemandScorer(sizes.width).to(device)
        return create_method(name, retention=retention, scorer=scorer)
    if name != "tokenflex":
        return create_method(name, retention=retention)
    projector = TokenFlexProjector(sizes.vision, sizes.width).to(device, dtype)
    return create_method(name, retention=retention, projector=projector)


def language_model(
    sizes: Sizes, layers: int, device: torch.device, dtype: torch.dtype
) -> torch.nn.Module:
    """A Llama of these widths with random weights."""
    try:
        from transformers import LlamaConfig, LlamaModel
    except ImportError as error:
        raise VTCError("transformers: not installed; pip install 'vtc-vlm[hf]'") from error
    config = LlamaConfig(
        hidden_size=sizes.width,
        intermediate_size=sizes.inner,
        num_hidden_layers=layers,
        num_attention_heads=max(sizes.width // 128, 1),
        vocab_size=32,
        max_position_embeddings=32768,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return LlamaModel(config).eval()
    finally:
        torch.set_default_dtype(before)


def selections(
    names: Sequence[str],
    tokens: int,
    batch: int,
    sizes: Sizes,
    model: Any,
    device: torch.device,
    dtype: torch.dtype,
    rounds: int,
    retention: float,
) -> list[dict[str, Any]]:
    """Selection of each method against the prefill of as many tokens, round by round.

    Returns:
        A row for each method: seconds of selection and prefill (median and quartiles; prefill scaled
        to all layers) and their ratio.
    """
    images, crops = COUNTS[tokens]
    encoded = Encoded.random(batch * images, crops, sizes, device, dtype)
    visual = images * (1 if crops is None else 1 + crops[0] * crops[1]) * sizes.side**2
    embeds = normal(device, dtype, batch, visual, sizes.width)
    layers = model.config.num_hidden_layers
    made = {name: method_of(name, retention, sizes, device, dtype) for name in names}

    def prefill() -> float:
        with torch.no_grad():
            seconds = stopwatch(lambda: model(inputs_embeds=embeds, use_cache=True), device)
        return seconds * LAYERS / layers

    def selection(name: str) -> float:
        method = made[name]
        with torch.no_grad():
            # short on the CPU: the median of a few, beside one prefill
            each = [stopwatch(lambda: encoded.select(method), device) for _ in range(3)]
        return statistics.median(each)

    cases: dict[str, Callable[[], float]] = {"prefill": prefill}
    cases |= {name: functools.partial(selection, name) for name in names}
    times = interleaved(cases, rounds)
    return [
        {
            "method": name,
            "tokens": visual,
            "batch": batch,
            "selection": spread(times[name]),
            "prefill": spread(times["prefill"]),
            "ratio": ratio(times[name], times["prefill"]).__dict__,
        }
        for name in names
    ]
