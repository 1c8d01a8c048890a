"""The selection of every method as a share of a 7B language model's prefill."""

from __future__ import annotations

import functools
import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vtc.errors import VTCError
from vtc.eval.common.memory import peak_allocated
from vtc.eval.common.timing import ratio, spread, stopwatch, turns
from vtc.eval.kernels.bench.sizes import LAYERS, LAYOUTS, Layout, Sizes, normal
from vtc.kernels import attention_received, cls_attention
from vtc.methods._scorer import DemandScorer
from vtc.methods.base import Method
from vtc.methods.tokenflex import TokenFlexProjector
from vtc.registry import create_method, list_methods, method_class
from vtc.tokens import OF_THE_QUESTION, CompressedTokens, VisualTokens

#: of a question
WORDS = 12
#: visual tokens of a batch above which a selection is timed once
LONG = 2880


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
        layout: of a prompt.
    """

    query: Tensor
    keys: Tensor
    hidden: Tensor
    projected: Tensor
    newline: Tensor
    to_text: Tensor
    question: Tensor
    layout: Layout

    @classmethod
    def random(
        cls,
        layout: Layout,
        batch: int,
        sizes: Sizes,
        device: torch.device,
        dtype: torch.dtype,
    ) -> Encoded:
        """Random values, with what methods live on: half of the patches are much alike, and CLS looks
        at a few of the others much more than at the rest.
        """
        tiles, length = batch * layout.images * layout.tiles, sizes.side**2
        shape = (tiles, length + 1, sizes.heads, sizes.head_width)
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
            make(tiles, length + 1, sizes.vision),
            make(tiles, length, sizes.width),
            make(sizes.width),
            make(sizes.vision, sizes.space),
            make(sizes.space),
            layout,
        )

    def first(self, batch: int, layout: Layout) -> Encoded:
        """The first so many prompts, in a layout of as many tiles."""
        tiles = batch * layout.images * layout.tiles
        own = {
            name: getattr(self, name)[:tiles] for name in ("query", "keys", "hidden", "projected")
        }
        return replace(self, layout=layout, **own)

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
        tiles, tile_grid = self.layout.tiles, self.layout.crops
        rows, cols = tile_grid or (1, 1)
        return [
            VisualTokens(
                features=features[first : first + tiles],
                patch_grid=(side, side),
                tile_grid=tile_grid,
                image_size=(rows * pixels, cols * pixels),
                newline=None if tile_grid is None else self.newline,
                signals={
                    name: value if name in whole else value[first : first + tiles]
                    for name, value in signals.items()
                },
                content_seed=first,
            )
            for first in range(0, len(features), tiles)
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
        raise VTCError(f"transformers: cannot be imported: {error}") from error
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


class Case(NamedTuple):
    """A selection that is timed."""

    name: str
    layout: Layout
    batch: int


def clock(device: torch.device) -> tuple[Callable[[], float], str]:
    """What times are taken by, and what it counts: where one thread computes, its own seconds, so that
    other processes on a busy machine count little."""
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return time.process_time, "CPU time"
    return time.perf_counter, "wall time"


def selections(
    names: Sequence[str],
    tokens: int,
    batches: Sequence[int],
    sizes: Sizes,
    model: Any,
    device: torch.device,
    dtype: torch.dtype,
    rounds: int,
    retention: float,
) -> list[dict[str, Any]]:
    """Selection of each method against the prefill of as many tokens, round by round.

    Before the first round every selection runs once for its memory. With more than `LONG` visual tokens
    in a batch it runs once in all, timed while its allocations are noted. On the CPU the prefill of a
    batch is that of one prompt, times the batch: its products are long enough to keep a core busy; and
    clips come one at a time.

    Returns:
        A row for each method, layout and batch: seconds of selection and prefill (median and quartiles;
        prefill scaled to all layers), their ratio, and bytes: at most held by the selection above what
        the vision tower left, and those of the features that it left.
    """
    on_cpu, layouts = device.type == "cpu", LAYOUTS[tokens]
    encoded = Encoded.random(layouts[0], max(batches), sizes, device, dtype)
    visual = layouts[0].images * layouts[0].tiles * sizes.side**2
    layers = model.config.num_hidden_layers
    made = {name: method_of(name, retention, sizes, device, dtype) for name in names}
    watch = functools.partial(stopwatch, device=device, clock=clock(device)[0])

    def prefill(batch: int) -> float:
        embeds = normal(device, dtype, batch, visual, sizes.width)
        with torch.no_grad():
            seconds = watch(lambda: model(inputs_embeds=embeds, use_cache=True))
        return seconds * LAYERS / layers

    cases = [Case(*each) for each in itertools.product(names, layouts, batches)]
    if on_cpu:
        cases = [case for case in cases if case.batch == 1 or case.layout is layouts[0]]
    prefills = [1] if on_cpu else list(batches)
    every: list[Case | int] = [*prefills, *cases]
    times: dict[Case | int, list[float]] = {case: [] for case in every}
    memory: dict[Case, int] = {}
    for turn, order in turns(every, rounds + 1):
        for case in order:
            batch = case if isinstance(case, int) else case.batch
            long = on_cpu and tokens * batch > LONG
            if isinstance(case, int):
                if turn == 0 and not on_cpu:  # a core needs no warming up
                    prefill(case)
                if turn == 1 or (turn > 1 and not long):
                    times[case].append(prefill(case))
                continue
            if turn and long:
                continue
            own, method = encoded.first(case.batch, case.layout), made[case.name]
            seconds: list[float] = []

            def select(own: Encoded = own, method: Method = method, into: Any = seconds) -> None:
                with torch.no_grad():
                    into.append(watch(lambda: own.select(method)))

            if turn == 0:
                memory[case] = peak_allocated(select, device)
            else:  # short: the median of a few, beside one prefill
                for _ in range(3):
                    select()
            if turn or long:
                times[case].append(statistics.median(seconds))

    rows = []
    for case in cases:
        one = times[1 if on_cpu else case.batch][: len(times[case])]
        whole = [seconds * (case.batch if on_cpu else 1) for seconds in one]
        rows.append(
            {
                "method": case.name,
                "tokens": visual,
                "layout": str(case.layout),
                "batch": case.batch,
                "selection": spread(times[case]),
                "prefill": spread(whole),
                "ratio": ratio(times[case], whole).__dict__,
                "memory": memory[case],
                "features": case.batch * visual * sizes.width * encoded.projected.element_size(),
            }
        )
    return rows
