"""What the plug-in costs a host: `python -m vtc.eval.serving_cost MODEL`.

One vLLM engine in this process answers batches of one image each, unpruned and at several shares, round
by round, and the processor time of each batch is compared with that of the unpruned one of its round. It
counts what this process computes, so other work on the machine disturbs it little; what a GPU does is
not in it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from vtc.eval.common.arguments import positive
from vtc.eval.common.docs import table
from vtc.eval.common.timing import interleaved, ratio, spread
from vtc.eval.serving import asked

UNPRUNED = "all, unpruned"
HEAD = ("share kept", "method", "processor time a request, ms", "against unpruned")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vtc.eval.serving_cost", description=__doc__)
    parser.add_argument("model", help="folder or hub name")
    parser.add_argument("--method", default="uniform", help="the method that prunes")
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0, 0.5, 0.25, 0.1])
    parser.add_argument("--prompts", type=positive, default=8, help="requests of a batch")
    parser.add_argument("--rounds", type=positive, default=15, help="times that all is measured")
    parser.add_argument("--side", type=positive, default=336, help="height and width of the images")
    parser.add_argument("--prompt", default="USER: <image>\nWhat is it? ASSISTANT:")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--max-model-len", type=positive, default=None)
    args = parser.parse_args(argv)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # an engine elsewhere would not be counted
    # "none" by name, since the environment may say otherwise
    shares = {UNPRUNED: {"vtc_method": "none"}, **asked(args.method, args.shares)}
    ask = _asking(args)
    times = interleaved({name: partial(ask, keys) for name, keys in shares.items()}, args.rounds)
    rows, base = [], times[UNPRUNED]
    for name, seconds in times.items():
        each = [1000 * s / args.prompts for s in seconds]
        middle, low, high = spread(each)
        against = "1" if name == UNPRUNED else str(ratio(seconds, base))
        method = "" if name == UNPRUNED else args.method
        rows.append([name, method, f"{middle:.1f} ({low:.1f}-{high:.1f})", against])
    print(table(HEAD, rows), end="")
    return 0


def _asking(args: argparse.Namespace) -> Callable[[dict[str, Any]], float]:
    """A function that has a batch of new images answered and says how long this process computed."""
    import numpy as np
    from PIL import Image
    from vllm import LLM, SamplingParams

    engine = LLM(
        model=args.model,
        dtype=args.dtype,
        max_model_len=args.max_model_len,
        enforce_eager=True,
        enable_prefix_caching=False,
        limit_mm_per_prompt={"image": 1},
    )
    sampling = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    noise = np.random.default_rng(0)

    def ask(keywords: dict[str, Any]) -> float:
        requests = []
        for _ in range(args.prompts):
            pixels = noise.integers(0, 256, (args.side, args.side, 3), dtype=np.uint8)
            request = {"prompt": args.prompt, "mm_processor_kwargs": keywords}
            request["multi_modal_data"] = {"image": Image.fromarray(pixels)}
            requests.append(request)
        start = time.process_time()
        engine.generate(requests, sampling, use_tqdm=False)
        return time.process_time() - start

    return ask


if __name__ == "__main__":
    sys.exit(main())
