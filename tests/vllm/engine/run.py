"""Runs one engine in a process of its own: `python -m tests.vllm.engine.run JOB.json OUT.json`.

A job names a checkpoint, arguments of `vllm.LLM`, and rounds of requests with pictures as files. Beside
each answer stand the log probabilities of its tokens. Some jobs have

* `refused`: a round may be answered by why it was refused;
* `other`: a folder whose `vtc` is found by processes that are started;
* `ray`: GPUs that Ray is told of.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def main(job: Path, out: Path) -> None:
    work = json.loads(job.read_text())
    if "other" in work:
        import vtc  # noqa: F401  # here it is this one

        sys.path.insert(0, work["other"])  # what is spawned takes the path over
    if "ray" in work:
        import ray

        ray.init(num_gpus=work["ray"], include_dashboard=False, object_store_memory=2**28)
    from PIL import Image
    from vllm import LLM, SamplingParams

    llm = LLM(model=work["model"], dtype="float32", enforce_eager=True, **work["engine"])
    if work.get("profile"):
        llm.collective_rpc(_profile)
    sampling = SamplingParams(temperature=0, max_tokens=work["steps"], ignore_eos=True, logprobs=0)
    rounds: list[Any] = []
    for requests in work["rounds"]:
        prompts = [
            {
                "prompt": request["prompt"],
                "multi_modal_data": {"image": [Image.open(file) for file in request["images"]]},
                "mm_processor_kwargs": request["keywords"],
            }
            for request in requests
        ]
        try:
            answers = llm.generate(prompts, sampling, use_tqdm=False)
        except ValueError as error:
            if not work.get("refused"):
                raise
            rounds.append(str(error))
        else:
            rounds.append([_plain(answer) for answer in answers])
    found: dict[str, Any] = {"rounds": rounds}
    found["fallbacks"] = llm.apply_model(_fallbacks) if work.get("count") else None
    out.write_text(json.dumps(found))


def _profile(worker: Any) -> None:
    """What vLLM's worker for CPUs leaves out of a start with `enforce_eager`; without it the second
    stage of a pipeline has no place for what the first one sends."""
    worker.model_runner.profile_run()


def _fallbacks(model: Any) -> int:
    return model.vtc_fallbacks


def _plain(answer: Any) -> dict[str, Any]:
    said = answer.outputs[0]
    ids = list(said.token_ids)
    return {
        "length": len(answer.prompt_token_ids),
        "ids": ids,
        "logs": [step[token].logprob for step, token in zip(said.logprobs, ids, strict=True)],
        "cached": answer.num_cached_tokens,
    }


if __name__ == "__main__":
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
