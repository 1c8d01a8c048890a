"""One call of `generate`, measured: once for what can be counted, again and again for times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from vtc.eval.common.memory import peak_allocated
from vtc.eval.efficiency import bare
from vtc.eval.efficiency.flops import counter
from vtc.eval.efficiency.memory import cache_bytes
from vtc.eval.efficiency.stages import LayerMarks, Stages, parts
from vtc.eval.efficiency.stretches import Stretches, stretches
from vtc.plugins.model.inputs import PIXELS

if TYPE_CHECKING:
    from vtc.eval.efficiency.subject import Subject


@dataclass(frozen=True)
class Pass:
    """What one call showed.

    Attributes:
        figures: names of `lines.MEASURES` -> values.
        extrapolated: the same at the published depth.
    """

    figures: dict[str, float]
    extrapolated: dict[str, float]


@dataclass(frozen=True)
class Counted(Pass):
    """What one call showed that is the same every time.

    Attributes:
        layers: encoder layers that ran.
        lengths: tokens that entered each layer of the language model.
        encoder: the encoder's call, to be made again; None when there were no images.
    """

    layers: int = 0
    lengths: tuple[int, ...] = ()
    encoder: Callable[[], Any] | None = None


class _Arrivals:
    """A streamer of `generate`: when each token was there."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, tokens: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to do."""


def timed(
    subject: Subject,
    inputs: Mapping[str, Any],
    new_tokens: int,
    cuts: Stretches | None = None,
    fed: Sequence[int] | None = None,
) -> Pass:
    """Seconds of a call, stage by stage, and tokens a second behind the first one.

    On CUDA the stages are read from events in the stream, so that nothing waits between them; the
    tokens are read from the host's clock when they have arrived there.

    Args:
        inputs: arguments of `generate`.
        new_tokens: at least 2.
        cuts: the layers between cuts inside the language model; None for no cut.
        fed: tokens that layers are fed by hand, see `bare.fed`.
    """
    cuda = subject.device.type == "cuda"

    def event() -> Any:
        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        return mark

    def wait() -> None:
        if cuda:
            torch.cuda.synchronize(subject.device)

    stages, arrivals = Stages(event if cuda else time.perf_counter), _Arrivals()
    place = torch.cuda.device(subject.device) if cuda else nullcontext()
    with place, _feeding(subject, fed), stages.on(subject.model), torch.inference_mode():
        wait()
        start = time.perf_counter()
        subject.model.generate(**inputs, **_greedy(subject, new_tokens), streamer=arrivals)
        wait()

    def between(begin: Any, end: Any) -> float:
        return begin.elapsed_time(end) / 1e3 if cuda else end - begin

    _, first, *_, last = arrivals.times  # the prompt is put before the first token
    ttft, step = first - start, (last - first) / (new_tokens - 1)
    cuts = cuts or stretches(None, subject.depth.language, subject.true_depth.language)
    now, more = _by_stage(subject, stages, between, cuts)
    steps = [_layers(run, between) for run in stages.language_layers[1:]]
    more_step = statistics.fmean(cuts.missing(layers) for layers in steps)
    return Pass(
        {
            **{f"{name}_time": value for name, value in now.items()},
            "ttft": ttft,
            "decode_speed": 1 / step,
        },
        {
            **{f"{name}_time": now[name] + more[name] for name in now},
            "ttft": ttft + sum(more.values()),
            "decode_speed": 1 / (step + more_step),
        },
    )


def counted(
    subject: Subject,
    inputs: Mapping[str, Any],
    weights: int,
    cuts: Stretches | None = None,
    fed: Sequence[int] | None = None,
) -> Counted:
    """FLOPs up to the first token, peak memory, bytes of the cache behind the prompt.

    Args:
        weights: bytes of the weights that the call needs.
        cuts, fed: as for `timed`.
    """
    flops, kept = counter(), []
    cuts = cuts or stretches(None, subject.depth.language, subject.true_depth.language)
    stages = Stages(flops.get_total_flops)

    def call() -> None:
        with torch.no_grad(), _feeding(subject, fed), stages.on(subject.model), flops:
            output = subject.model.generate(
                **inputs, **_greedy(subject, 1), return_dict_in_generate=True, use_cache=True
            )
            kept.append(cache_bytes(output.past_key_values))

    peak = weights + peak_allocated(call, subject.device)
    now, more = _by_stage(subject, stages, lambda begin, end: float(end - begin), cuts)
    (layers,), total = kept, float(flops.get_total_flops())
    cache, more_cache = sum(layers), round(cuts.missing(layers))
    more_weights = subject.true_weights - subject.weights
    return Counted(
        {
            **{f"{name}_flops": value for name, value in now.items()},
            "flops": total,
            "peak_memory": peak,
            "kv_cache": cache,
        },
        {
            **{f"{name}_flops": now[name] + more[name] for name in now},
            "flops": total + sum(more.values()),
            "peak_memory": peak + more_weights + more_cache,
            "kv_cache": cache + more_cache,
        },
        stages.layers,
        tuple(stages.lengths),
        stages.encoder,
    )


def encoder_peak(subject: Subject, encoder: Callable[[], Any]) -> int:
    """Bytes at the peak of the encoder by itself, weights left out."""

    def call() -> None:
        with torch.no_grad():
            encoder()

    return peak_allocated(call, subject.device)


def embeddings(subject: Subject, tokens: int) -> dict[str, Any]:
    """A prompt of `tokens` places for the language model alone: no text to embed, no images."""
    width = subject.model.config.get_text_config().hidden_size
    generator = torch.Generator().manual_seed(tokens)
    values = 0.02 * torch.randn(1, tokens, width, generator=generator)
    return {
        "inputs_embeds": values.to(subject.device, subject.model.dtype),
        "attention_mask": torch.ones(1, tokens, dtype=torch.long, device=subject.device),
    }


def _by_stage(
    subject: Subject, stages: Stages, between: Callable[[Any, Any], float], cuts: Stretches
) -> tuple[dict[str, float], dict[str, float]]:
    """Vision, selection, prefill and what of it goes into cuts; and what the layers that are missing
    would add to each.

    A stage is taken to be linear in its layers: what it spends in them grows with their number, between
    two cuts as much as there; the rest stays.
    """
    spans = {name: sum(between(*pair) for pair in pairs) for name, pairs in stages.marks.items()}
    prompt = stages.language_layers[0]
    now = {
        "vision": spans["encoder"],
        "selection": spans["shorten"] - spans["encoder"] if stages.marks["shorten"] else 0.0,
        "prefill": between(*stages.marks["language"][0]),
        "inside": sum(between(layer.arrived, layer.begin) for layer in prompt),
    }
    if len(set(stages.lengths)) == 1:
        now["inside"] = 0.0  # what is left is the cost of a mark
    more = {
        "vision": spans["encoder_layers"] / max(stages.layers, 1) * subject.missing.vision,
        "selection": 0.0,
        "prefill": cuts.missing(_layers(prompt, between)),
        "inside": 0.0,
    }
    return now, more


def _layers(run: Sequence[LayerMarks], between: Callable[[Any, Any], float]) -> list[float]:
    return [between(layer.begin, layer.end) for layer in run]


def _feeding(subject: Subject, fed: Sequence[int] | None) -> AbstractContextManager[None]:
    return nullcontext() if fed is None else bare.fed(parts(subject.model)[3], fed)


def _greedy(subject: Subject, new_tokens: int) -> dict[str, Any]:
    """Exactly `new_tokens` tokens; a model that emits a placeholder could not read it back."""
    config = subject.model.config
    ids = {getattr(config, f"{modality}_token_id", None) for modality in PIXELS}
    return {
        "max_new_tokens": new_tokens,
        "min_new_tokens": new_tokens,
        "do_sample": False,
        "num_beams": 1,
        "suppress_tokens": sorted(token for token in ids if token is not None),
    }
