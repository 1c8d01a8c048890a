"""One call of `generate`, measured: once for what can be counted, again and again for times."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from vtc.eval.efficiency.flops import counter
from vtc.eval.efficiency.memory import cache_bytes, peak_bytes
from vtc.eval.efficiency.stages import Stages
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
        encoder: the encoder's call, to be made again; None when there were no images.
    """

    layers: int = 0
    encoder: Callable[[], Any] | None = None


class _Arrivals:
    """A streamer of `generate`: when each token was there."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, tokens: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to do."""


def timed(subject: Subject, inputs: Mapping[str, Any], new_tokens: int) -> Pass:
    """Seconds of a call, stage by stage, and tokens a second behind the first one.

    On CUDA the stages are read from events in the stream, so that nothing waits between them; the
    tokens are read from the host's clock when they have arrived there.

    Args:
        inputs: arguments of `generate`.
        new_tokens: at least 2.
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
    with place, stages.on(subject.model), torch.inference_mode():
        wait()
        start = time.perf_counter()
        subject.model.generate(**inputs, **_greedy(subject, new_tokens), streamer=arrivals)
        wait()
    spans = {
        name: [a.elapsed_time(b) / 1e3 if cuda else b - a for a, b in marks]
        for name, marks in stages.marks.items()
    }
    _, first, *_, last = arrivals.times  # the prompt is put before the first token
    ttft, step = first - start, (last - first) / (new_tokens - 1)
    now, more = _by_stage(subject, spans, stages.layers)
    inside = sum(spans["language_layers"][1:]) / (new_tokens - 1)
    more_step = inside / subject.depth.language * subject.missing.language
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


def counted(subject: Subject, inputs: Mapping[str, Any], weights: int) -> Counted:
    """FLOPs up to the first token, peak memory, bytes of the cache behind the prompt.

    Args:
        weights: bytes of the weights that the call needs.
    """
    flops, kept = counter(), []
    stages = Stages(flops.get_total_flops)

    def call() -> None:
        with torch.no_grad(), stages.on(subject.model), flops:
            output = subject.model.generate(
                **inputs, **_greedy(subject, 1), return_dict_in_generate=True, use_cache=True
            )
            kept.append(cache_bytes(output.past_key_values))

    peak = weights + peak_bytes(call, subject.device)
    spans = {name: [float(b - a) for a, b in marks] for name, marks in stages.marks.items()}
    now, more = _by_stage(subject, spans, stages.layers)
    (cache,), total = kept, float(flops.get_total_flops())
    more_cache = cache // subject.depth.language * subject.missing.language
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
        stages.encoder,
    )


def encoder_peak(subject: Subject, encoder: Callable[[], Any]) -> int:
    """Bytes at the peak of the encoder by itself, weights left out."""

    def call() -> None:
        with torch.no_grad():
            encoder()

    return peak_bytes(call, subject.device)


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
    subject: Subject, spans: Mapping[str, list[float]], layers: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Vision, selection and prefill; and what the layers that are missing would add to each.

    A stage is taken to be linear in its layers: what it spends in them grows with their number, the
    rest stays.
    """
    encoder, shorten = sum(spans["encoder"]), sum(spans["shorten"])
    prefill, inside = spans["language"][0], spans["language_layers"][0]
    now = {
        "vision": encoder,
        "selection": shorten - encoder if spans["shorten"] else 0.0,
        "prefill": prefill,
    }
    more = {
        "vision": sum(spans["encoder_layers"]) / max(layers, 1) * subject.missing.vision,
        "selection": 0.0,
        "prefill": inside / subject.depth.language * subject.missing.language,
    }
    return now, more


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
