"""Search the layer at which `vtw` may drop all image tokens of a model, as its paper does.

It is the first one, from layer 5 of 32 on, at which dropping them changes what the model is about to say
by no more than a threshold: the divergence of the next token's distribution from that of the
uncompressed model, averaged over a few questions. The paper takes 20 questions and the thresholds 0.003
(LLaVA-1.5-7B), 0.0005 (13B) and 0.0001 (LLaVA-1.6-7B).

    python -m vtc.eval.vtw_layer --model llava-hf/llava-1.5-7b-hf \\
        --suite pope --suite-option pope.data=FOLDER
    python -m vtc.eval.vtw_layer --suite reference --samples 20 --threshold 0.003

In Python `search` takes what the model takes. Paper and code: see `vtc.methods.vtw`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

import vtc
from vtc.errors import VTCError
from vtc.eval.common.arguments import add_place, add_suite_option, positive
from vtc.functional.layer_counts import scaled_layers
from vtc.methods.vtw import VTW
from vtc.plugins.hf.adapters import adapter_for

#: the paper's first candidate, of so many layers
FIRST, OF = 5, 32


@dataclass(frozen=True)
class Found:
    """The outcome of a search.

    Attributes:
        layer: the one for `VTW(layer=...)`; None where no layer is good enough.
        divergence: of every layer that was tried, in nats, the mean over samples.
    """

    layer: int | None
    divergence: dict[int, float]


def search(
    model: Any,
    samples: Iterable[Mapping[str, Any]],
    threshold: float = 0.003,
    first: int | None = None,
    every: bool = False,
) -> Found:
    """The first layer at which dropping all image tokens changes the next token by little.

    The divergence is `sum p log(p / q)`, in float32 over the vocabulary at the last token of a row: p is
    the model's without image tokens from that layer on, q the whole model's.

    Args:
        model: a Hugging Face vision-language model.
        samples: arguments of the model's forward, of one prompt or of several padded on the left.
        threshold: in nats, at least 0.
        first: the first layer to try, from 1 on; None for layer 5 of 32 at the same share of the depth.
        every: try the layers behind the one that was found as well.

    Raises:
        VTCError: no samples, a prompt without an image or padded on the right, a threshold or layer
            out of range, or a model that `vtw` does not work on.
    """
    if not threshold >= 0:
        raise VTCError(f"threshold: got {threshold!r}, allowed are numbers >= 0")
    lm = adapter_for(model).language_model(model.base_model)
    depth = len(lm.layers)
    begin = scaled_layers((FIRST,), OF, depth)[0] if first is None else first
    if not isinstance(begin, int) or not 1 <= begin < depth:
        raise VTCError(f"first: got {first!r}, allowed are 1 to {depth - 1}")
    given = list(samples)
    if not given:
        raise VTCError("samples: got none, give one at least")
    with vtc.compress(model, "none"):  # whatever `vtc.apply` has put on
        whole = [_next(model, sample) for sample in given]
    divergence: dict[int, float] = {}
    layer = None
    for number in range(begin, depth):
        pairs = zip(given, whole, strict=True)
        divergence[number] = fmean(
            each for sample, before in pairs for each in _changes(model, number, sample, before)
        )
        if layer is None and divergence[number] <= threshold:
            layer = number
        if layer is not None and not every:
            break
    return Found(layer, divergence)


def _changes(model: Any, layer: int, sample: Mapping[str, Any], before: Tensor) -> list[float]:
    """How much every row of a sample changes."""
    with vtc.compress(model, VTW(layer=layer)) as run:
        now = _next(model, sample)
    shown = {image.sample for report in run.reports for image in report.images}
    if len(shown) < len(now):
        raise VTCError("samples: a prompt shows no image, and every one has to")
    apart = torch.nn.functional.kl_div(before, now, reduction="none", log_target=True)
    return [float(row) for row in apart.sum(-1)]


@torch.inference_mode()
def _next(model: Any, sample: Mapping[str, Any]) -> Tensor:
    """Float32 `[B, V]`, log-probabilities of the next token."""
    mask = sample.get("attention_mask")
    if isinstance(mask, Tensor) and not bool(mask[:, -1].all()):
        raise VTCError("samples: prompts are padded on the right, allowed is the left")
    return model(**sample).logits[:, -1].float().log_softmax(-1)


# -- the command -----------------------------------------------------------------------------------


def _samples(loaded: Any, suite: Any, count: int) -> Iterator[Mapping[str, Any]]:
    """The first questions of a suite that show an image, one by one."""
    from vtc.rgb import load_image

    shown = (item for item in suite.first(None) if item.images)
    for item in islice(shown, count):
        yield loaded.inputs([load_image(call()) for call in item.images], item.prompt)


def main(arguments: list[str] | None = None) -> int:
    """Search, and print what was found."""
    parser = argparse.ArgumentParser(prog="python -m vtc.eval.vtw_layer", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", default="reference", help="hub id, folder, or 'reference'")
    parser.add_argument("--suite", default="reference", help="questions, see `vtc.eval accuracy`")
    add_suite_option(parser, "option of the suite, such as its folder")
    parser.add_argument("--samples", type=positive, default=20, help="questions, default 20")
    parser.add_argument("--threshold", type=float, default=0.003, help="in nats, default 0.003")
    parser.add_argument("--first", type=positive, help="first layer; default: layer 5 of 32")
    parser.add_argument("--every", action="store_true", help="try the layers behind it as well")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_place(parser)
    args = parser.parse_args(arguments)
    try:
        found = _run(args)
    except VTCError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps({"layer": found.layer, "divergence": found.divergence}))
        return 0
    for layer, value in found.divergence.items():
        mark = "  <- the layer for vtw" if layer == found.layer else ""
        print(f"layer {layer}: {value:.3g}{mark}")
    if found.layer is None:
        print(f"error: no layer is within {args.threshold}", file=sys.stderr)
    return int(found.layer is None)


def _run(args: argparse.Namespace) -> Found:
    from vtc.eval.common.loading import load
    from vtc.eval.common.settings import parse_options
    from vtc.eval.suites import create_suite

    options = parse_options(args.suite_option, "suite-option")
    suite = create_suite(args.suite, **options.get(args.suite, {}))
    loaded = load(args.model, args.device, args.dtype)
    samples = list(_samples(loaded, suite, args.samples))
    return search(loaded.model, samples, args.threshold, args.first, args.every)


if __name__ == "__main__":
    raise SystemExit(main())
